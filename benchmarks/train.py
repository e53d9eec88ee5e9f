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

import statistics
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.coco_size import Sizes, make_features, make_table
from benchmarks.report import print_results, result
from benchmarks.textbook_decoder import TextbookDecoder, textbook_step
from benchmarks.timed_loop import OurLoop
from captioner.batches import BatchLoader
from captioner.device import prepare_device
from captioner.features.readers import GpuReader
from captioner.parameters import TrainParameters
from captioner.training.data import epoch_batches
from captioner.training.stage import LENGTH_MULTIPLE

EPOCH_TARGET = 10.0  # seconds at the larger batch, on one H100
PRECISIONS = ("fp32", "bf16")
_PROFILED = 4  # steps


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
