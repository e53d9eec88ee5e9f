"""An epoch of training on features of COCO's size, by the training loop itself, beside a textbook loop.

    python -m benchmarks.train --device cuda [--full] [--sync-check]
    python -m benchmarks.train --device cpu --images 200 --channels 64 --hidden 32 --vocabulary 500 --batch-size 64
    --steps 2

82,783 images of 7x7x2048 fp16 features (random numbers made on the device, 16.6 GB), 414,113 captions as long as
COCO's, a vocabulary of 9,500 words, soft attention and an LSTM of 512 units, no validation. In every round some steps
of ``fit`` are timed after others to warm up, then some of the textbook loop (fp32) on batches of the same captions; on
a GPU also some of ours in bf16 without CUDA graphs. There the first epoch, which records the graphs, is not timed.
Seconds an epoch are **extrapolated** from the steps and the time before the first one; --full times whole epochs
instead. A GPU's idle fraction is 1 - (its working time in a step, by torch.profiler) / (the unprofiled step's time).
"""

from __future__ import annotations

import statistics
import warnings
from collections import Counter
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch

from benchmarks.coco import Sizes, make_features, make_table
from benchmarks.loops import PRECISIONS, FitLoop, TextbookLoop, TimedLoader
from benchmarks.report import print_results, result
from captioner.batches import CaptionTable
from captioner.device import prepare_device
from captioner.features.readers import FeatureReader, GpuReader

EPOCH_TARGET = 10.0  # seconds at the larger batch, on one H100
_WARM = 2  # steps
_PROFILED = 4  # steps


def measure_loops(
    sizes: Sizes,
    table: CaptionTable,
    reader: FeatureReader,
    device: torch.device,
    batch_size: int,
    steps: int,
    rounds: int,
    full: bool,
    sync_check: bool,
) -> list[dict]:
    """Both precisions of ours and the textbook loop in turn; two results for each precision."""
    on_gpu = device.type == "cuda"
    textbook = TextbookLoop(sizes, TimedLoader(table, np.arange(sizes.images), reader, device), device, batch_size)
    names = [*PRECISIONS, "bf16 without graphs"] if on_gpu else list(PRECISIONS)
    seconds: dict[str, list[float]] = {name: [] for name in names}  # of an epoch
    paces: dict[str, list[float]] = {name: [] for name in names}  # of a step
    rates: dict[str, list[float]] = {name: [] for name in ("textbook", *names)}
    peaks, rows = {}, []
    with ExitStack() as stack:
        loops = {}
        for name in names:
            loader = TimedLoader(table, np.arange(sizes.images), reader, device)
            loops[name] = stack.enter_context(FitLoop(sizes, loader, device, batch_size, name.split()[0]))
        steps = min(steps, loops["fp32"].steps_in_epoch - _WARM)
        if on_gpu:
            for precision in PRECISIONS:
                loops[precision].whole_epoch()  # records the graphs
        for _ in range(rounds):
            rates["textbook"].append(textbook.rate(max(1, min(steps, 3))))
            for name, loop in loops.items():
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats(device)
                with nullcontext() if name in PRECISIONS else mock.patch("captioner.cuda_graphs._MOST_SHAPES", 0):
                    before = loop.run(_WARM, steps)
                rates[name].append(loop.rate)
                paces[name].append(loop.loader.seconds / steps)
                if name in PRECISIONS:
                    extrapolated = before + loop.steps_in_epoch * paces[name][-1]
                    seconds[name].append(loop.whole_epoch() if full else extrapolated)
                if on_gpu:
                    peaks[name] = torch.cuda.max_memory_allocated(device) / 2**30
        for precision in PRECISIONS:
            loop = loops[precision]
            if sync_check and on_gpu:
                report_synchronisations(loop)
            name = f"batch {batch_size:,} {precision}"
            epoch, step = statistics.median(seconds[precision]), statistics.median(paces[precision])
            facts = {
                "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
                "threads": torch.get_num_threads(),
            }
            if on_gpu:
                facts |= {"memory_gib": round(peaks[precision], 2), **kernels(loop, step)}
            compared = {"textbook fp32": "textbook"}
            if f"{precision} without graphs" in rates:
                compared["without graphs"] = f"{precision} without graphs"
            rows += [
                result(f"training loop {name} / {other}", rates[precision], rates[key], None, "captions/s", **facts)
                for other, key in compared.items()
            ]
            target = 1.0 if on_gpu and sizes == Sizes() and batch_size == 1280 else None
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


def kernels(loop: FitLoop, step_seconds: float) -> dict[str, float]:
    """What torch.profiler says of a step on a GPU: kernels and copies, and the fraction of the step's time in which
    none of them runs."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profiler:
        loop.run(1, _PROFILED)
    busy = [
        event.time_range.elapsed_us()
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    fraction = sum(busy) / 1e6 / (_PROFILED + 1) / step_seconds
    return {"kernels_a_step": round(len(busy) / (_PROFILED + 1)), "gpu_idle": round(max(0.0, 1 - fraction), 3)}


def report_synchronisations(loop: FitLoop, steps: int = 4) -> None:
    """Print where the processor waits for the GPU in a step of the loop, and how often."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loop.run(1, steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message)
    )
    print(f"waits for the GPU in {steps + 1} steps ({loop.options.precision}):", dict(waits) or "none")


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
    rows, table = [], make_table(sizes)
    with GpuReader(make_features(sizes, chosen)) as reader:
        for batch_size in batch_sizes:
            rows += measure_loops(sizes, table, reader, chosen, batch_size, steps, rounds, full, sync_check)
    print_results(rows)


if __name__ == "__main__":
    main()
