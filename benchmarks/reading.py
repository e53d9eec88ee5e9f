"""The fraction of a training step that is spent waiting for data: python -m benchmarks.reading

Makes a features file of 2,000 images, 7x7x512 in fp16, and trains on it with ``fit`` itself (batches of 64
captions, an LSTM of 256 units, no validation), the features read from disk (runtime.features_on=disk) and from a memory
map (ram), the file in the page cache. Compared are the captions a second with those of the same steps without the time
in which the loop waits for its next batch; the ratio is one less the fraction that is spent waiting.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.coco import Sizes, make_table
from benchmarks.loops import PRECISIONS, FitLoop, TimedLoader
from benchmarks.read import write_rows
from benchmarks.report import print_results, result
from captioner.device import prepare_device
from captioner.features.store import FeatureStore

TARGET = 0.97
READERS = ("disk", "ram")
_WARM = 2  # steps


def run(
    sizes: Sizes, store: FeatureStore, device: torch.device, batch_size: int, precision: str, steps: int, rounds: int
) -> list[dict]:
    """Both readers in turn, one result for each."""
    table = make_table(sizes)
    rates: dict[str, list[float]] = {where: [] for where in READERS}
    unhindered: dict[str, list[float]] = {where: [] for where in READERS}
    waits: dict[str, list[float]] = {where: [] for where in READERS}
    with ExitStack() as stack:
        loops = {}
        for where in READERS:
            reader = stack.enter_context(store.reader(where, device))
            loader = TimedLoader(table, np.arange(sizes.images), reader, device)
            loops[where] = stack.enter_context(FitLoop(sizes, loader, device, batch_size, precision))
        for _ in range(rounds):
            for where, loop in loops.items():
                loop.run(_WARM, steps)
                waited = sum(loop.loader.waits[_WARM:])
                rates[where].append(loop.rate)
                unhindered[where].append(loop.loader.captions / (loop.loader.seconds - waited))
                waits[where].append(waited / steps)
    facts = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "row_bytes": store.row_size,
        "batch_size": batch_size,
        "precision": precision,
    }
    return [
        result(
            f"{where}: training loop / without waiting for data",
            rates[where],
            unhindered[where],
            TARGET,
            "captions/s",
            waited_milliseconds_a_step=round(1000 * statistics.median(waits[where]), 3),
            **facts,
        )
        for where in READERS
    ]


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=0, help="threads of arithmetic; 0: all cores")
@click.option("--images", default=2000, show_default=True)
@click.option("--channels", default=512, show_default=True)
@click.option("--hidden", default=256, show_default=True)
@click.option("--vocabulary", default=2500, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--steps", default=40, show_default=True, help="timed steps in a round, at most an epoch's")
@click.option("--rounds", default=5, show_default=True)
def main(
    device: str,
    threads: int,
    images: int,
    channels: int,
    hidden: int,
    vocabulary: int,
    batch_size: int,
    precision: str,
    steps: int,
    rounds: int,
) -> None:
    chosen = prepare_device(device, threads)
    sizes = Sizes(images, 5 * images, Sizes.positions, channels, vocabulary, hidden)
    steps = min(steps, 5 * images // batch_size - _WARM)
    with tempfile.TemporaryDirectory() as folder:
        store = write_rows(Path(folder) / "features.h5", images, sizes.positions, channels)
        print_results(run(sizes, store, chosen, batch_size, precision, steps, rounds))


if __name__ == "__main__":
    main()
