"""The benchmark of training steps, in a small version, and its peers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional as F

from benchmarks.coco import LENGTHS, LONGEST, RandomReader, Sizes, make_decoder, make_table
from benchmarks.loops import training_step
from benchmarks.plain_decoder import PlainDecoder, plain_optimizer, plain_step
from benchmarks.step import OLD_STEP, PRECISIONS, Task, main
from captioner.batches import BatchLoader
from captioner.interrupts import StopSignal
from captioner.parameters import TrainParameters
from captioner.training.data import GlobalBatch, epoch_batches
from captioner.training.distributed import Group
from captioner.training.optimizers import set_rates
from captioner.training.phases import Learner, build_phases
from captioner.training.train import TrainContext, fit

CPU = torch.device("cpu")
TINY = Sizes(images=30, captions=60, positions=4, channels=8, vocabulary=50, hidden=8)


class FixedFeatures(RandomReader):
    """The same features whenever an image is read."""

    def _gather(self, flat: np.ndarray) -> Tensor:
        rows = torch.linspace(0, 1, 4 * 8).view(1, 4, 8) * torch.from_numpy(flat + 1).view(-1, 1, 1)
        return (rows % 1).half()


class NoValidator:
    def metrics(self, *_: object) -> dict[str, float]:
        return {"val_cross_entropy": 1.0, "val_token_accuracy": 0.0}


def learn(sizes: Sizes, options: TrainParameters) -> tuple[list, Learner]:
    decoder = make_decoder(sizes, options, CPU)
    phases = build_phases(options, make_table(sizes), LONGEST, decoder)
    return phases, Learner(phases[0], decoder, options, Group())


def test_a_step_is_what_the_training_loop_does(tmp_path: Path) -> None:
    options = TrainParameters(hidden_size=8, batch_size=10, epochs=1, clip=0.5)  # some gradients are clipped, some not
    loader = BatchLoader(make_table(TINY), np.arange(TINY.images), FixedFeatures(TINY, CPU))
    phases, own = learn(TINY, options)
    set_rates(own.optimizer, phases[0].rates)
    own.decoder.train()
    torch.manual_seed(1)
    losses = []
    for batch in epoch_batches(loader.table, 10, options.captions_per_image, 1, 7, 1):
        features, tokens = loader.load(batch)
        losses.append(training_step(own, options, features, tokens, GlobalBatch.of([batch], loader.table)).item())
    phases, theirs = learn(TINY, options)
    context = TrainContext(loader, NoValidator(), Group(), 7, 1, tmp_path, float("inf"))
    torch.manual_seed(1)
    state = fit(theirs.decoder, options, phases, context, StopSignal("train"))
    assert len(losses) == 6 and state.history[0]["train_cross_entropy"] == pytest.approx(
        sum(losses) / loader.table.targets.sum(), rel=1e-6
    )
    expected = theirs.decoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in own.decoder.state_dict().items())


def test_batches_are_as_long_as_an_epoch_s() -> None:
    sizes = Sizes(images=1600, captions=8000)
    task = Task(sizes, make_table(sizes), 80, 12, CPU)
    targets = task.table.targets
    batches = task.own()
    assert [batch.captions.shape for batch in batches] == [(16, 5)] * 12
    images = np.concatenate([batch.images for batch in batches])
    assert len(set(images.tolist())) == 12 * 16  # different ones
    tokens = np.array([targets[batch.captions].sum() for batch in batches])
    assert tokens.mean() == pytest.approx(80 * targets[:-1].mean(), rel=0.02)


def plain(dropout: float = 0.0) -> PlainDecoder:
    torch.manual_seed(0)
    return PlainDecoder(30, 6, 8, 4, 12, 10, 14, dropout)


def test_the_plain_decoder_shares_nothing_that_differs() -> None:
    decoder = plain().double()
    features = torch.rand(2, 4, 8, dtype=torch.float64)
    tokens = torch.randint(4, 30, (2, 3, 6))
    lengths = torch.tensor([[6, 2, 4], [1, 6, 3]])
    mask = torch.arange(6) < lengths.unsqueeze(-1)
    logits = decoder(features, tokens.where(mask, 0), mask).split(lengths.flatten().tolist())
    for row, own in enumerate(logits):  # each caption by itself, without padding
        image, caption = divmod(row, 3)
        words = tokens[image : image + 1, caption : caption + 1, : lengths[image, caption]]
        alone = decoder(features[image : image + 1], words, torch.ones_like(words, dtype=torch.bool))
        torch.testing.assert_close(own, alone, rtol=0, atol=1e-12)


def test_the_plain_decoder_is_show_attend_and_tell() -> None:
    """One caption, written out (Xu et al. 2015, equations of section 3)."""
    d = plain().double()
    features = torch.rand(1, 4, 8, dtype=torch.float64)
    a = F.layer_norm(d.projection(features[0]), (12,)) + d.position  # norm's own weight and bias are 1 and 0
    h, c = torch.tanh(d.initial(a.mean(0))).chunk(2)
    tokens, expected = [1, 17, 5], []
    for token in tokens:
        energy = [d.score(torch.tanh(d.key(a[p]) + d.query(h))) for p in range(4)]
        alpha = torch.softmax(torch.cat(energy), 0)
        z = torch.sigmoid(d.gate(h)) * sum(alpha[p] * a[p] for p in range(4))
        y = d.embedding.weight[token]
        w = d.cell.weight_ih @ torch.cat([y, z]) + d.cell.bias_ih + d.cell.weight_hh @ h + d.cell.bias_hh
        i, f, g, o = w.chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        expected.append(d.vocabulary(h + d.output_context.weight @ z + d.output_word.weight @ y))
    words = torch.tensor([[tokens]])
    actual = d(features, words, words > 0)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plain_decoder_learns(precision: str) -> None:
    decoder = plain(0.1)
    features = torch.rand(2, 4, 8).half()
    tokens = torch.tensor([[[1, 5, 6, 2], [1, 7, 2, 0]], [[1, 8, 2, 0], [1, 9, 10, 2]]])
    optimizer = plain_optimizer(decoder, 0.01)
    losses = [plain_step(decoder, optimizer, features, tokens, precision).item() for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(30), rel=0.15) and losses[-1] < losses[0] / 2
    assert not decoder.embedding.weight.requires_grad and decoder.embedding.weight.grad is None


STUBS = {
    "decoder": """
        import torch
        class DecoderConfig:
            def __init__(self, **settings): self.settings = settings
        def build_decoder(config): return torch.nn.Linear(config.settings["channels"], 1)
    """,
    "device": """
        import torch
        def prepare_device(device, threads): return torch.device(device)
    """,
    "parameters": """
        class TrainParameters:
            feature_size = hidden_size = attention_size = 1
            dropout = learning_rate = projection_learning_rate = 0.1
            def __init__(self, hidden_size, precision): self.precision = precision
    """,
    "training/batches": """
        class CaptionTable:
            def __init__(self, image_ids, tokens, image): self.tokens = tokens
        class Batch:
            def __init__(self, captions): self.captions = captions
        def epoch_batches(table, batch_size, captions_per_image, views, seed, epoch):
            import numpy
            rows = numpy.arange(len(table.tokens) - 1).reshape(-1, batch_size // 2, 2)
            return [Batch(captions) for captions in rows]
    """,
    "training/optimizers": """
        def build_optimizer(decoder, options): return None
        def set_rates(optimizer, rates): pass
    """,
    "training/step": """
        import pathlib, torch
        def training_step(decoder, optimizer, batches, options):
            (features, tokens), = batches
            assert features.dtype == torch.float16 and features.shape == (4, 9, 32) and tokens.shape[:2] == (4, 2)
            assert (tokens[..., -1] != 0).any() and (tokens[..., 0] == 1).all()
            with open("steps.txt", "a") as file: file.write(options.precision + "\\n")
            return torch.zeros(()), 1
    """,
}


def older_commit(folder: Path) -> Path:
    """A folder with stubs of the older code, which write down each step."""
    for name, text in STUBS.items():
        path = folder / "captioner" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line[8:] for line in text.splitlines()))
    assert (folder / OLD_STEP).is_file()
    return folder


def test_the_command_compares_with_an_older_commit(tmp_path: Path) -> None:
    folder = older_commit(tmp_path)
    command = ["--small", "--threads", "1", "--repeats", "2", "--before", str(folder)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    rows = {row["name"]: row for row in json.loads(done.output.splitlines()[-1])}
    targets = {"before": {"fp32": 0.95, "bf16": 1.0}, "plain": 1.0, "ceiling": 0.5, "textbook": 5.0}
    for precision in PRECISIONS:
        for kind, target in targets.items():
            name = f"training step {precision} / {kind}" + (f" {precision}" if kind != "textbook" else "")
            row = rows[name]
            assert row["target"] == (target[precision] if kind == "before" else target)
            assert row["ours"] > 0 and row["other"] > 0 and row["repeats"] == 2
    assert len(rows) == 9  # and ours in bf16 against the ceiling in fp32
    steps = (folder / "steps.txt").read_text().split()
    assert steps == [precision for _ in range(3) for precision in PRECISIONS for _ in range(3)]  # old and new in turn


def test_the_older_commits_error_is_shown(tmp_path: Path) -> None:
    folder = older_commit(tmp_path)
    (folder / OLD_STEP).write_text("raise RuntimeError('from the older code')")
    command = [sys.executable, "-m", "benchmarks.step", "--small", "--repeats", "1", "--before", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "from the older code" in done.stderr and "--before" in done.stderr


def test_a_commit_without_that_step_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--small", "--before", str(tmp_path)])
    assert done.exit_code == 2 and OLD_STEP in done.output


def test_lengths_are_600_captions() -> None:
    assert sum(LENGTHS.values()) == 600
