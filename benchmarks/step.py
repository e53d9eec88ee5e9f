"""One training step of the soft-attention LSTM beside other ways to compute it, on captions as long as COCO's.

    python -m benchmarks.step [--threads N] [--repeats R] [--before FOLDER] [--profile fp32|bf16]

Beside a textbook loop, a plain decoder of standard modules (``benchmarks.plain_decoder``), and the ceiling: the
vocabulary layer with its loss, the feature projection and the optimizer alone. ``--before`` names a git worktree of an
older commit of this project, whose own step runs in a process beside this one, its rounds between these. Batches have 16
images with 5 captions each, 49x2048 features, a vocabulary of 9,500 words, 512 hidden units. Ours and the plain
decoder get batches of similar lengths, as training makes them; the older code and the textbook loop get images in
random order, as they were made before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_decoder import PlainDecoder, plain_step
from benchmarks.report import measure, print_results, result
from benchmarks.textbook_decoder import TextbookDecoder, textbook_step
from captioner.batches import CaptionTable, cut_batches, group_captions, inputs_and_targets
from captioner.decoder import Decoder, DecoderConfig, build_decoder, unmasked
from captioner.device import prepare_device
from captioner.parameters import TrainParameters
from captioner.teacher_forcing import token_cross_entropy
from captioner.training.data import GlobalBatch, epoch_batches
from captioner.training.objectives import CrossEntropy
from captioner.training.optimizers import build_optimizer, clip_gradients, set_rates
from captioner.training.train import autocast
from captioner.vocabulary.vocabulary import END, PAD, START

# words of 600 captions of COCO 2017
LENGTHS = {
    7: 5,
    8: 98,
    9: 132,
    10: 121,
    11: 91,
    12: 61,
    13: 38,
    14: 20,
    15: 8,
    16: 8,
    17: 9,
    18: 1,
    19: 3,
    20: 1,
    21: 3,
}
PRECISIONS = ("fp32", "bf16")
TEXTBOOK_TARGET, CEILING_TARGET, BEFORE_TARGETS = 5.0, 0.5, {"fp32": 0.95, "bf16": 1.0}
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """What is measured; ``batches`` a round, of a pool of ``pool`` images."""

    images: int = 16
    captions: int = 5
    positions: int = 49
    channels: int = 2048
    vocabulary: int = 9500
    hidden: int = 512
    pool: int = 1600
    batches: int = 12


def make_table(sizes: Sizes) -> CaptionTable:
    """Captions of random words, as long as COCO's."""
    generator = np.random.default_rng(0)
    share = np.array(list(LENGTHS.values())) / sum(LENGTHS.values())
    lengths = generator.choice(list(LENGTHS), sizes.pool * sizes.captions, p=share)
    tokens = np.full((len(lengths) + 1, max(LENGTHS) + 2), PAD, dtype=np.int64)
    for row, length in zip(tokens, lengths):
        row[0], row[length + 1] = START, END
        row[1 : length + 1] = generator.integers(4, sizes.vocabulary, length)
    return CaptionTable(np.arange(sizes.pool), tokens, np.repeat(np.arange(sizes.pool), sizes.captions))


def make_batches(sizes: Sizes, bucketed: bool) -> Batches:
    """Features (I, P, C) float16 and tokens (I, K, T + 1): a round's batches, of similar lengths each or random "
    "ones."""
    table = make_table(sizes)
    size = sizes.images * sizes.captions
    if bucketed:
        batches = epoch_batches(table, size, 0, 1, seed=1, epoch=1)
    else:
        groups, owners = group_captions(table)
        order = np.random.default_rng(1).permutation(len(groups))
        batches = cut_batches(groups[order], owners[order], np.zeros(len(order), dtype=np.int64), size)
    generator = torch.Generator().manual_seed(0)
    loaded = []
    for batch in batches[: sizes.batches]:
        tokens = torch.from_numpy(table.tokens[batch.captions][..., : table.targets[batch.captions].max() + 1])
        shape = (len(batch.images), sizes.positions, sizes.channels)
        loaded.append((torch.rand(shape, generator=generator).half(), tokens.contiguous()))
    return loaded


def make_decoder(sizes: Sizes, options: TrainParameters, device: torch.device) -> tuple[Decoder, torch.optim.Optimizer]:
    """A decoder and its optimizer."""
    torch.manual_seed(0)
    config = DecoderConfig(
        "lstm",
        "soft",
        sizes.vocabulary,
        50,
        sizes.channels,
        sizes.positions,
        options.feature_size,
        options.hidden_size,
        options.attention_size,
        dropout=options.dropout,
    )
    decoder = build_decoder(config).to(device).train()
    optimizer = build_optimizer(decoder, options)
    set_rates(optimizer, (options.learning_rate, options.projection_learning_rate))
    return decoder, optimizer


def our_round(sizes: Sizes, device: torch.device, precision: str) -> Callable[[], int]:
    """Training steps as ``captioner.training.train.fit`` does them; the function returns how many captions."""
    options = TrainParameters(hidden_size=sizes.hidden, precision=precision)
    decoder, optimizer = make_decoder(sizes, options, device)
    objective, batches = CrossEntropy(decoder, options), make_batches(sizes, bucketed=True)
    parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]

    def run() -> int:
        for features, tokens in batches:
            _, targets = inputs_and_targets(tokens)
            counts = GlobalBatch(int((targets != PAD).sum()), tokens.shape[0] * tokens.shape[1], len(tokens))
            optimizer.zero_grad(set_to_none=True)
            tensors = objective.prepare(features.to(device), tokens, counts, 1.0, 0.0)
            with autocast(device, options):
                loss, _ = objective(*tensors)
            loss.backward()
            clip_gradients(parameters, options.clip)
            optimizer.step()
            loss.item()
        return len(batches) * sizes.images * sizes.captions

    return run


def plain_round(sizes: Sizes, device: torch.device, precision: str) -> Callable[[], int]:
    """The plain decoder on the same batches, fused Adam."""
    torch.manual_seed(0)
    decoder = PlainDecoder(sizes.vocabulary, 50, sizes.channels, sizes.hidden, 256, sizes.positions).to(device).train()
    trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    optimizer, batches = torch.optim.Adam(trained, fused=True), make_batches(sizes, bucketed=True)

    def run() -> int:
        for features, tokens in batches:
            plain_step(decoder, optimizer, features.to(device), tokens.to(device), precision == "bf16").item()
        return len(batches) * sizes.images * sizes.captions

    return run


def textbook_round(sizes: Sizes, device: torch.device) -> Callable[[], int]:
    """The textbook loop on two random batches, default Adam."""
    torch.manual_seed(0)
    decoder = TextbookDecoder(sizes.vocabulary, 50, sizes.channels, sizes.hidden, 256).to(device).train()
    optimizer = torch.optim.Adam([parameter for parameter in decoder.parameters() if parameter.requires_grad])
    batches = make_batches(sizes, bucketed=False)[:2]

    def run() -> int:
        for features, tokens in batches:
            textbook_step(decoder, optimizer, features.to(device), tokens.to(device)).item()
        return len(batches) * sizes.images * sizes.captions

    return run


def ceiling_round(sizes: Sizes, device: torch.device, precision: str) -> Callable[[], int]:
    """Vocabulary layer and loss over the tokens to predict, feature projection, and the optimizer."""
    options = TrainParameters(hidden_size=sizes.hidden, precision=precision)
    decoder, optimizer = make_decoder(sizes, options, device)
    batches = make_batches(sizes, bucketed=True)
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def run() -> int:
        for features, tokens in batches:
            _, targets = inputs_and_targets(tokens)
            wanted = targets.flatten()[unmasked(targets)].to(device)
            hidden = torch.randn(len(wanted), sizes.hidden, device=device, requires_grad=True)
            with autocast(device, options):
                values = decoder.projection(features.to(device).float()).float()
                loss = token_cross_entropy(decoder.vocabulary(hidden), wanted).mean()
            torch.autograd.backward([loss, values], [None, torch.ones_like(values)])
            optimizer.step()
            loss.item()
        return len(batches) * sizes.images * sizes.captions

    return run


class Before:
    """The training step of an older checkout, in a process of its own that does a round when it is told to."""

    def __init__(self, folder: str, sizes: Sizes, precision: str, threads: int) -> None:
        path = Path(__file__).with_name("older_step.py")
        file = tempfile.NamedTemporaryFile(suffix=".pt")  # noqa: SIM115
        torch.save(make_batches(sizes, bucketed=False), file.name)
        command = [sys.executable, str(path), precision, str(threads), repr(sizes.__dict__), file.name]
        environment = {**os.environ, "PYTHONPATH": str(Path(folder).resolve())}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder, text=True
        )
        self._process.stdout.readline()  # ready
        file.close()

    def __call__(self) -> int:
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def run(sizes: Sizes, device: torch.device, repeats: int, before: str | None = None) -> list[dict]:
    """Measure all of them in turn; the textbook loop knows only fp32."""
    rounds: dict[str, Callable[[], int]] = {"textbook": textbook_round(sizes, device)}
    for precision in PRECISIONS:
        rounds[f"ours {precision}"] = our_round(sizes, device, precision)
        rounds[f"plain {precision}"] = plain_round(sizes, device, precision)
        rounds[f"ceiling {precision}"] = ceiling_round(sizes, device, precision)
        if before:
            rounds[f"before {precision}"] = Before(before, sizes, precision, torch.get_num_threads())
    rates = measure(rounds, repeats)
    facts = {"threads": torch.get_num_threads(), "device": str(device)}
    rows = []
    for precision in PRECISIONS:
        ours = rates[f"ours {precision}"]
        peers = [("textbook loop fp32", "textbook", TEXTBOOK_TARGET), ("plain decoder", f"plain {precision}", 1.0)]
        peers.append((f"ceiling {precision}", f"ceiling {precision}", CEILING_TARGET))
        if before:
            peers.append(("older commit", f"before {precision}", BEFORE_TARGETS[precision]))
        for label, name, target in peers:
            rows.append(
                result(f"training step {precision} / {label}", ours, rates[name], target, "captions/s", **facts)
            )
    return rows


def profile(sizes: Sizes, device: torch.device, precision: str) -> str:
    """Where a step's time goes, as torch.profiler's table of operators by their own time."""
    step = our_round(sizes, device, precision)
    step()
    with torch.profiler.profile() as profiler:
        step()
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=50)


@click.command(help=__doc__)
@click.option("--threads", default=0, help="threads of arithmetic; 0: all cores")
@click.option("--repeats", default=7, help="rounds")
@click.option("--device", default="cpu")
@click.option("--before", type=click.Path(exists=True), help="a git worktree of an older commit")
@click.option("--profile", "profiled", type=click.Choice(PRECISIONS), help="also print where the time goes")
@click.option("--small", is_flag=True, help="tiny sizes, to try the benchmark itself")
def main(threads: int, repeats: int, device: str, before: str | None, profiled: str | None, small: bool) -> None:
    chosen = prepare_device(device, threads)
    sizes = Sizes(4, 2, 9, 32, 50, 16, 16, 2) if small else Sizes()
    if profiled:
        print(profile(sizes, chosen, profiled))
    print_results(run(sizes, chosen, repeats, before))


if __name__ == "__main__":
    main()
