"""An epoch of training on features of COCO's size, by the training loop itself, beside a textbook loop.

    python -m benchmarks.train --device cuda [--full] [--sync-check]
    python -m benchmarks.train --device cpu --images 200 --channels 64 --hidden 32 --vocabulary 500 --batch-size 64
    --steps 2

82,783 images of 7x7x2048 fp16 features (random numbers made on the device, 16.6 GB), 414,113 captions as long as
COCO's, a vocabulary of 9,500 words, soft attention and an LSTM of 512 units, no validation. In every round some steps
of the training loop are timed after others to warm up, then some of the textbook loop (fp32) on batches of the same
captions; on a GPU also some of ours in bf16 that launch every kernel by itself, without CUDA graphs. Seconds an
epoch are **extrapolated** from the steps and the time before the first one; --full times whole epochs instead. A GPU's
idle share is one less the time that torch.profiler finds it at work in a step, as a share of the unprofiled step's
time.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from unittest import mock

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.report import print_results, result
from benchmarks.textbook_decoder import TextbookDecoder, textbook_step
from captioner.batches import Batch, BatchLoader, CaptionTable
from captioner.cuda_graphs import GraphedModule
from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.device import prepare_device
from captioner.features.readers import GpuReader
from captioner.interrupts import StopSignal
from captioner.parameters import TrainParameters
from captioner.training.data import epoch_batches
from captioner.training.distributed import Group
from captioner.training.phases import build_phases
from captioner.training.stage import LENGTH_MULTIPLE
from captioner.training.train import TrainContext, fit
from captioner.training.validation import Validator
from captioner.vocabulary.vocabulary import END, PAD, START

EPOCH_TARGET = 10.0  # seconds at the larger batch, on one H100
PRECISIONS = ("fp32", "bf16")
# words of 1,221 captions of COCO 2017, none cut: length -> captions
LENGTHS = {
    7: 10,
    8: 181,
    9: 256,
    10: 266,
    11: 202,
    12: 125,
    13: 74,
    14: 34,
    15: 19,
    16: 18,
    17: 14,
    18: 5,
    19: 5,
    20: 3,
    21: 5,
    22: 1,
    23: 1,
    26: 1,
    42: 1,
}
LONGEST = 30  # vocab.max_length
_PROFILED = 4  # steps


@dataclass(frozen=True)
class Sizes:
    """What the issue of the benchmark fixes; ``captions`` are spread over the images as evenly as can be."""

    images: int = 82_783
    captions: int = 414_113
    positions: int = 49
    channels: int = 2048
    vocabulary: int = 9500
    hidden: int = 512


def make_table(sizes: Sizes) -> CaptionTable:
    """Random captions whose lengths are distributed as COCO's; always the same."""
    generator = np.random.default_rng(0)
    words = np.minimum(list(LENGTHS), LONGEST)
    share = np.array(list(LENGTHS.values())) / sum(LENGTHS.values())
    lengths = generator.choice(words, sizes.captions, p=share)  # (M,)
    place = np.arange(LONGEST + 2)  # START, words, END
    tokens = generator.integers(4, sizes.vocabulary, (sizes.captions + 1, LONGEST + 2))
    tokens[:, 0] = START
    tokens[:-1][place > lengths[:, None] + 1] = PAD
    tokens[np.arange(sizes.captions), lengths + 1] = END
    tokens[-1] = PAD
    return CaptionTable(np.arange(sizes.images), tokens, np.sort(np.arange(sizes.captions) % sizes.images))


def make_features(sizes: Sizes, device: torch.device) -> Tensor:
    """(N, 1, P, C) float16 between 0 and 1, drawn on the device."""
    features = torch.empty(sizes.images, 1, sizes.positions, sizes.channels, dtype=torch.float16, device=device)
    for part in features.split(1024):
        part.uniform_()
    return features


class Done(Exception):
    """Ends ``fit`` when enough steps are timed, or at the end of an epoch."""


class StepClock:
    """The loader and the validator of a training loop, which look at the clock when the loop asks for the next batch.

    Attributes:
        calls: all steps so far.
        first: when the first step of the stretch began.
        seconds: of the timed steps and of what the loop did between them.
        captions: of the timed steps.
    """

    def __init__(self, loader: BatchLoader, device: torch.device) -> None:
        self._loader, self._device, self.table = loader, device, loader.table
        self.calls, self.first, self.seconds, self.captions = 0, 0.0, 0.0, 0
        self._begin, self._end, self._started, self._in_step = 0, -1, 0.0, 0

    def stretch(self, warm: int, timed: int) -> None:
        """Time ``timed`` steps after the next ``warm``, at least 1; then ``Done``."""
        self._begin, self._end = self.calls + warm, self.calls + warm + timed
        self.first, self.captions = 0.0, 0

    def stream(self, groups: Iterable[list[Batch]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """See ``BatchLoader``."""
        for loaded in self._loader.stream(groups):
            self.first = self.first or time.perf_counter()
            self._in_step = sum(int((tokens[..., 1] != PAD).sum()) for _, tokens in loaded)
            yield loaded
            self._end_step()  # the loop comes back for the next batch

    def metrics(self, decoder: Decoder, stop: Callable[[], bool]) -> dict[str, float]:
        """In place of validation: the epoch is over."""
        self._end_step()  # the last one, after which the loop asks for no batch
        raise Done

    def _end_step(self) -> None:
        self.calls += 1
        if self.calls > self._begin:
            self.captions += self._in_step
        if self.calls == self._begin:
            self._started = self._now()
        if self.calls == self._end:
            self.seconds = self._now() - self._started
            raise Done

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to have done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class OurLoop:
    """The project's own loop: loader, steps, progress, losses read; everything but validation."""

    def __init__(
        self,
        sizes: Sizes,
        loader: BatchLoader,
        device: torch.device,
        batch_size: int,
        precision: str,
        folder: Path,
        graphed: bool = True,
    ) -> None:
        torch.manual_seed(0)
        self.options = TrainParameters(hidden_size=sizes.hidden, batch_size=batch_size, precision=precision)
        config = DecoderConfig(
            "lstm",
            "soft",
            sizes.vocabulary,
            50,
            sizes.channels,
            sizes.positions,
            self.options.feature_size,
            sizes.hidden,
            self.options.attention_size,
        )
        self.decoder = build_decoder(config).to(device)
        self._phases = build_phases(self.options, loader.table, LONGEST, self.decoder)
        # kept, because a new one would record its graphs anew in every run
        self._model = GraphedModule(self._phases[0].objective, graphed and device.type == "cuda")
        self.clock, self._device = StepClock(loader, device), device
        # no checkpoint is saved
        self._context = TrainContext(
            cast(BatchLoader, self.clock), cast(Validator, self.clock), Group(device=device), 0, 1, folder, float("inf")
        )
        self.steps_in_epoch = len(epoch_batches(loader.table, batch_size, self.options.captions_per_image, 1, 0, 1))
        self._recorded = False

    def run(self, warm: int, timed: int) -> float:
        """The first steps of the epoch; seconds between its beginning and the first of them."""
        if self._device.type == "cuda" and not self._recorded:  # the graphs of these steps are recorded untimed
            self._recorded = True
            self.run(warm, timed)
        self.clock.stretch(warm, timed)
        started = time.perf_counter()
        self._epoch()
        return self.clock.first - started

    def whole_epoch(self) -> float:
        """Seconds of an epoch, from its beginning to its last step's end on the device."""
        self.clock.stretch(self.steps_in_epoch + 1, 1)  # never ends it
        synchronize(self._device)
        started = time.perf_counter()
        self._epoch()
        synchronize(self._device)
        return time.perf_counter() - started

    def _epoch(self) -> None:
        """The same epoch each time, with a new optimizer."""
        with (
            mock.patch("captioner.training.phases.GraphedModule", lambda objective, enabled: self._model),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(Done),
        ):
            fit(self.decoder, self.options, self._phases, self._context, StopSignal("train"))


class TextbookLoop:
    """The yardstick on batches of the same captions, features from the same reader, every loss read at once."""

    def __init__(self, sizes: Sizes, loader: BatchLoader, device: torch.device, batch_size: int) -> None:
        torch.manual_seed(0)
        self._decoder = (
            TextbookDecoder(sizes.vocabulary, 50, sizes.channels, sizes.hidden, TrainParameters().attention_size)
            .to(device)
            .train()
        )
        self._optimizer = torch.optim.Adam(
            [parameter for parameter in self._decoder.parameters() if parameter.requires_grad]
        )
        self._loader, self._device, self._batch_size, self._epoch = loader, device, batch_size, 1

    def rate(self, steps: int) -> float:
        """Captions a second, after one step to warm up."""
        self._epoch += 1
        batches = epoch_batches(self._loader.table, self._batch_size, 0, 1, 0, self._epoch)[: steps + 1]
        captions, started = 0, 0.0
        for batch in batches:
            features, tokens = self._loader.load(batch)
            textbook_step(self._decoder, self._optimizer, features, tokens.to(self._device)).item()
            if started:
                captions += int((batch.captions >= 0).sum())
            started = started or time.perf_counter()
        return captions / (time.perf_counter() - started)


def measure_loops(
    sizes: Sizes,
    loader: BatchLoader,
    device: torch.device,
    batch_size: int,
    steps: int,
    rounds: int,
    full: bool,
    sync_check: bool,
    folder: Path,
) -> list[dict]:
    """Both precisions of ours and the textbook loop in turn; two results for each precision."""
    textbook = TextbookLoop(sizes, loader, device, batch_size)
    loops = {precision: OurLoop(sizes, loader, device, batch_size, precision, folder) for precision in PRECISIONS}
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}  # of an epoch
    paces: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}  # of a step
    launched = (
        OurLoop(sizes, loader, device, batch_size, "bf16", folder, graphed=False) if device.type == "cuda" else None
    )
    rates: dict[str, list[float]] = {name: [] for name in ("textbook", "launched", *PRECISIONS)}
    steps = min(steps, loops["fp32"].steps_in_epoch - 2)
    peaks = {}
    for _ in range(rounds):
        rates["textbook"].append(textbook.rate(max(1, min(steps, 3))))
        if launched:
            launched.run(2, min(steps, 5))
            rates["launched"].append(launched.clock.captions / launched.clock.seconds)
        for precision, loop in loops.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            before = loop.run(2, steps)
            rates[precision].append(loop.clock.captions / loop.clock.seconds)
            paces[precision].append(loop.clock.seconds / steps)
            seconds[precision].append(
                loop.whole_epoch() if full else before + loop.steps_in_epoch * paces[precision][-1]
            )
            if device.type == "cuda":
                peaks[precision] = torch.cuda.max_memory_allocated(device) / 2**30
    rows = []
    for precision, loop in loops.items():
        if sync_check and device.type == "cuda":
            report_synchronisations(loop)
        name = f"batch {batch_size:,} {precision}"
        epoch, step = statistics.median(seconds[precision]), statistics.median(paces[precision])
        facts = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }
        if device.type == "cuda":
            facts |= {"memory_gib": round(peaks[precision], 2), **kernels(loop, step)}
        rows.append(
            result(
                f"training loop {name} / textbook fp32",
                rates[precision],
                rates["textbook"],
                None,
                "captions/s",
                **facts,
            )
        )
        if launched and precision == "bf16":
            rows.append(
                result(
                    f"training loop {name} / without a graph",
                    rates[precision],
                    rates["launched"],
                    None,
                    "captions/s",
                    **facts,
                )
            )
        target = 1.0 if device.type == "cuda" and sizes == Sizes() and batch_size == 1280 else None
        facts |= {
            "steps_in_epoch": loop.steps_in_epoch,
            "timed": "whole epochs" if full else f"{steps} steps, extrapolated",
            "milliseconds_a_step": round(1000 * step, 2),
        }
        ratio = EPOCH_TARGET / epoch
        rows.append(
            {
                "name": f"epoch {name}: {EPOCH_TARGET:g} s / its seconds",
                "ours": round(epoch, 3),
                "other": EPOCH_TARGET,
                "unit": "s an epoch",
                "ratio": round(ratio, 4),
                "target": target,
                "met": None if target is None else ratio >= target,
                "repeats": rounds,
                **facts,
            }
        )
    return rows


def kernels(loop: OurLoop, step_seconds: float) -> dict[str, float]:
    """What torch.profiler says of a step on a GPU: kernels and copies, and the share of the step's time in which none
    of them runs."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profiler:
        loop.run(1, _PROFILED)
    busy = [
        event.time_range.elapsed_us()
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    share = sum(busy) / 1e6 / (_PROFILED + 1) / step_seconds
    return {"kernels_a_step": round(len(busy) / (_PROFILED + 1)), "gpu_idle": round(max(0.0, 1 - share), 3)}


def report_synchronisations(loop: OurLoop, steps: int = 4) -> None:
    """Print where the processor waits for the GPU in a step of the loop, and how often."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loop.run(1, steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message)
    )
    print(f"waits for the GPU in {steps + 1} steps ({loop.options.precision}):", dict(places) or "none")


@click.command(help=__doc__)
@click.option("--device", default="cuda", show_default=True)
@click.option("--threads", default=0, help="threads of arithmetic; 0: all cores")
@click.option("--images", default=Sizes.images, show_default=True, help="captions in proportion")
@click.option("--channels", default=Sizes.channels, show_default=True)
@click.option("--vocabulary", default=Sizes.vocabulary, show_default=True)
@click.option("--hidden", default=Sizes.hidden, show_default=True)
@click.option("--batch-size", "batch_sizes", multiple=True, type=int, default=(256, 1280), show_default=True)
@click.option("--steps", default=20, show_default=True, help="timed steps in a round, at most an epoch's")
@click.option("--rounds", default=5, show_default=True)
@click.option("--full", is_flag=True, help="time whole epochs")
@click.option("--sync-check", is_flag=True, help="also print where the processor waits for the GPU")
def main(
    device: str,
    threads: int,
    images: int,
    channels: int,
    vocabulary: int,
    hidden: int,
    batch_sizes: tuple[int, ...],
    steps: int,
    rounds: int,
    full: bool,
    sync_check: bool,
) -> None:
    chosen = prepare_device(device, threads)
    sizes = Sizes(images, round(Sizes.captions * images / Sizes.images), Sizes.positions, channels, vocabulary, hidden)
    rows = []
    with tempfile.TemporaryDirectory() as folder, GpuReader(make_features(sizes, chosen)) as reader:
        loader = BatchLoader(
            make_table(sizes), np.arange(images), reader, LENGTH_MULTIPLE if chosen.type == "cuda" else 1
        )
        for batch_size in batch_sizes:
            rows += measure_loops(sizes, loader, chosen, batch_size, steps, rounds, full, sync_check, Path(folder))
    print_results(rows)


if __name__ == "__main__":
    main()
