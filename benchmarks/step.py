"""Training steps a second: ours against a textbook loop, a plain decoder, a ceiling, and an older commit of ours.

    python -m benchmarks.step [--threads N] [--repeats R] [--profile fp32|bf16]
    git worktree add /tmp/before 9449df8 && python -m benchmarks.step --before /tmp/before

All train a soft-attention LSTM of 512 units on 1,600 images of 49x2048 features with 5 captions each, as long as
COCO's, in a vocabulary of 9,500 words. A round is 12 steps of 16 images with all their captions.

    ours      as ``fit`` does a step
    plain     ``benchmarks.plain_decoder``
    ceiling   the vocabulary layer and its loss, the feature projection and the optimizer alone
    textbook  ``benchmarks.textbook_decoder``, fp32 only
    before    the older commit's training step on the batches of its own sampler; in a process of its own

All others take the first batches that ``epoch_batches`` makes, of random images. All are measured in turn in every
round; ratios are medians of the rounds' ratios of captions a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.coco import LONGEST, VECTOR_SIZE, RandomReader, Sizes, make_decoder, make_table
from benchmarks.loops import PRECISIONS, training_step
from benchmarks.plain_decoder import PlainDecoder, plain_optimizer, plain_step
from benchmarks.report import measure, print_results, result
from benchmarks.textbook_decoder import TextbookDecoder, textbook_step
from captioner.batches import Batch, BatchLoader, CaptionTable
from captioner.device import prepare_device
from captioner.parameters import TrainParameters
from captioner.teacher_forcing import token_cross_entropy
from captioner.training.data import GlobalBatch, epoch_batches
from captioner.training.distributed import Group
from captioner.training.optimizers import set_rates
from captioner.training.phases import Learner, build_phases
from captioner.training.train import autocast

TARGETS = {"textbook": 5.0, "plain": 1.0, "ceiling": 0.5}
BEFORE_TARGETS = {"fp32": 0.95, "bf16": 1.0}
OLD_STEP = "captioner/training/step.py"
WORKER = Path(__file__).with_name("step_before.py")


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        sizes: of the data and the decoder.
        table: the captions.
        batch_size: captions of a batch.
        batches: in a round.
        device: of the training.
    """

    sizes: Sizes
    table: CaptionTable
    batch_size: int
    batches: int
    device: torch.device

    def own(self) -> list[Batch]:
        """The first batches of an epoch."""
        return epoch_batches(self.table, self.batch_size, 0, 1, 0, 1)[: self.batches]

    def load(self, batches: list[Batch]) -> list[tuple[Tensor, Tensor, GlobalBatch]]:
        """Features (I, P, C) float16 on the device, tokens (I, K, T + 1) on the CPU, and what they count."""
        rows = np.arange(self.sizes.images)
        loader = BatchLoader(self.table, rows, RandomReader(self.sizes, self.device))
        return [(*loader.load(batch), GlobalBatch.of([batch], self.table)) for batch in batches]


def make_learner(task: Task, precision: str) -> tuple[Learner, TrainParameters]:
    """The decoder, objective and optimizer that the stage ``train`` makes."""
    options = TrainParameters(hidden_size=task.sizes.hidden, precision=precision)
    decoder = make_decoder(task.sizes, options, task.device)
    phase = build_phases(options, task.table, LONGEST, decoder)[0]
    learner = Learner(phase, decoder, options, Group(device=task.device))
    set_rates(learner.optimizer, phase.rates)
    return learner, options


def ours(task: Task, precision: str) -> Callable[[], int]:
    """The project's own training step; each function here does a round and returns how many captions it did."""
    learner, options = make_learner(task, precision)
    batches = task.load(task.own())

    def round() -> int:
        for features, tokens, counts in batches:
            training_step(learner, options, features, tokens, counts).item()
        return sum(counts.captions for _, _, counts in batches)

    return round


def plain(task: Task, precision: str) -> Callable[[], int]:
    """The plain decoder on the same batches, with the same sizes and learning rate."""
    torch.manual_seed(0)
    sizes, options = task.sizes, TrainParameters()
    decoder = PlainDecoder(
        sizes.vocabulary,
        VECTOR_SIZE,
        sizes.channels,
        sizes.positions,
        options.feature_size,
        sizes.hidden,
        options.attention_size,
        options.dropout,
    )
    decoder = decoder.to(task.device).train()
    optimizer = plain_optimizer(decoder, options.learning_rate)
    batches = task.load(task.own())

    def round() -> int:
        for features, tokens, _ in batches:
            plain_step(decoder, optimizer, features, tokens.to(task.device), precision).item()
        return sum(counts.captions for _, _, counts in batches)

    return round


def textbook(task: Task) -> Callable[[], int]:
    """The textbook loop on random images, with torch's default Adam."""
    torch.manual_seed(0)
    sizes, attention = task.sizes, TrainParameters().attention_size
    decoder = TextbookDecoder(sizes.vocabulary, VECTOR_SIZE, sizes.channels, sizes.hidden, attention)
    decoder = decoder.to(task.device).train()
    optimizer = torch.optim.Adam([parameter for parameter in decoder.parameters() if parameter.requires_grad])
    batches = task.load(task.own())

    def round() -> int:
        for features, tokens, _ in batches:
            textbook_step(decoder, optimizer, features, tokens.to(task.device)).item()
        return sum(counts.captions for _, _, counts in batches)

    return round


def ceiling(task: Task, precision: str) -> Callable[[], int]:
    """The vocabulary layer and its loss over the unmasked tokens, the feature projection, and the optimizer over every
    parameter, forward and backward, in the same precision."""
    learner, options = make_learner(task, precision)
    decoder, prepared = learner.decoder, []
    for features, tokens, counts in task.load(task.own()):
        targets = tokens[..., 1:]
        targets = targets[targets != 0].to(task.device)
        hidden = torch.randn(len(targets), task.sizes.hidden, device=task.device, requires_grad=True)
        gradient = torch.randn(*features.shape[:2], options.feature_size, device=task.device)  # of the values
        prepared.append((features, targets, hidden, gradient, counts))
    for parameter in learner.parameters:
        parameter.grad = torch.zeros_like(parameter)

    def round() -> int:
        for features, targets, hidden, gradient, _ in prepared:
            for layer in (decoder.vocabulary, decoder.projection):
                layer.zero_grad(set_to_none=True)
            hidden.grad = None
            with autocast(task.device, options):
                values = decoder.projection(features.float()).float()
                loss = token_cross_entropy(decoder.vocabulary(hidden), targets).sum() / len(targets)
            torch.autograd.backward([loss, values], [None, gradient])
            learner.optimizer.step()
            loss.item()
        return sum(counts.captions for *_, counts in prepared)

    return round


@contextmanager
def before(task: Task, folder: Path) -> Iterator[Callable[[str], int]]:
    """A process with the code in ``folder``; the function has it do a round of a precision and waits for it."""
    settings = asdict(task.sizes) | {
        "batch_size": task.batch_size,
        "batches": task.batches,
        "device": str(task.device),
        "precisions": PRECISIONS,
        "threads": torch.get_num_threads(),
        "vector_size": VECTOR_SIZE,
    }
    table = task.table
    with tempfile.TemporaryDirectory() as temporary:
        captions = Path(temporary) / "captions.npz"
        np.savez(captions, image_ids=table.image_ids, tokens=table.tokens, image=table.image)
        command = [sys.executable, "-P", str(WORKER), str(captions), json.dumps(settings)]
        environment = os.environ | {"PYTHONPATH": str(folder.resolve())}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        ) as process:

            def answer() -> str:
                line = process.stdout.readline()
                if not line:
                    raise click.ClickException(f"--before {folder}: its process has ended; its error is above")
                return line

            def round(precision: str) -> int:
                process.stdin.write(precision + "\n")
                process.stdin.flush()
                return int(answer())

            answer()  # it is ready
            yield round
            process.stdin.close()


def run(task: Task, repeats: int, folder: Path | None = None) -> list[dict]:
    """Measure all of them in turn, and ``folder``'s code where one is given."""
    rounds = {"textbook": textbook(task)}
    with ExitStack() as stack:
        older = stack.enter_context(before(task, folder)) if folder else None
        for precision in PRECISIONS:
            if older:
                rounds[f"before {precision}"] = lambda precision=precision: older(precision)
            rounds[f"ours {precision}"] = ours(task, precision)
            rounds[f"plain {precision}"] = plain(task, precision)
            rounds[f"ceiling {precision}"] = ceiling(task, precision)
        rates = measure(rounds, repeats)
    facts = {"threads": torch.get_num_threads(), "device": str(task.device), "batches": task.batches}
    # The ceiling in bf16 is products alone, which bf16 makes much faster; so ours in bf16 is also compared with fp32's.
    compared = [(precision, kind, precision) for kind in ("before", "plain", "ceiling") for precision in PRECISIONS]
    compared += [("fp32", "textbook", ""), ("bf16", "textbook", ""), ("bf16", "ceiling", "fp32")]
    rows = []
    for precision, kind, other in compared:
        name = f"{kind} {other}".strip()
        if name in rates:
            target = BEFORE_TARGETS[precision] if kind == "before" else TARGETS.get(kind)
            pair = rates[f"ours {precision}"], rates[name]
            rows.append(result(f"training step {precision} / {name}", *pair, target, "captions/s", **facts))
    return rows


def profile(task: Task, precision: str) -> str:
    """Where the time of a round goes, as torch.profiler's table of operators by their own time."""
    round = ours(task, precision)
    round()
    on_gpu = task.device.type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if on_gpu else [kinds.CPU]) as profiler:
        round()
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=50)


@click.command(help=__doc__)
@click.option("--threads", default=0, help="threads of arithmetic; 0: all cores")
@click.option("--repeats", default=5, help="rounds")
@click.option("--device", default="cpu")
@click.option("--batches", default=12, help="steps of each in a round")
@click.option(
    "--before",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="a git worktree of an older commit",
)
@click.option("--profile", "profiled", type=click.Choice(PRECISIONS), help="also print where our time goes")
@click.option("--small", is_flag=True, help="tiny sizes, to try the benchmark itself")
def main(
    threads: int, repeats: int, device: str, batches: int, folder: Path | None, profiled: str | None, small: bool
) -> None:
    if folder and not (folder / OLD_STEP).is_file():
        raise click.BadParameter(f"no {OLD_STEP} in {folder}; take a commit that has it", param_hint="--before")
    chosen = prepare_device(device, threads)
    sizes = Sizes(48, 96, 9, 32, 50, 16) if small else Sizes(1600, 8000)
    task = Task(sizes, make_table(sizes), 8 if small else 80, min(batches, 3) if small else batches, chosen)
    if profiled:
        print(profile(task, profiled))
    print_results(run(task, repeats, folder))


if __name__ == "__main__":
    main()
