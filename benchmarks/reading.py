"""The fraction of a training step that is spent waiting for data: python -m benchmarks.reading

Makes a features file of 2,000 images, 7x7x512 in fp16, and trains on it with the training loop itself (batches of 64
captions, an LSTM of 256 units, no validation), the features read from disk (runtime.features_on=disk) and from a memory
map (ram), the file in the page cache. Compared are the captions a second with those of the same steps without the time
in which the loop waits for its next batch; the ratio is one less the fraction that is spent waiting.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.coco_size import Sizes, make_table
from benchmarks.read import write_rows
from benchmarks.report import print_results, result
from benchmarks.timed_loop import OurLoop
from benchmarks.train import PRECISIONS
from captioner.batches import Batch, BatchLoader
from captioner.device import prepare_device
from captioner.features.store import FeatureStore

TARGET = 0.97
READERS = ("disk", "ram")
_WARM = 2  # steps


class TimedLoader(BatchLoader):
    """The project's loader, which notes how long the loop waits for each batch.

    Attributes:
        waits: seconds, one entry a step.
    """

    waits: list[float] = []

    def stream(self, groups: Iterable[list[Batch]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        self.waits = []
        batches = super().stream(groups)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waits.append(time.perf_counter() - started)
            yield batch


def run(
    sizes: Sizes,
    store: FeatureStore,
    device: torch.device,
    batch_size: int,
    precision: str,
    steps: int,
    rounds: int,
    folder: Path,
) -> list[dict]:
    """Both readers in turn, one result for each."""
    table = make_table(sizes)
    with store.reader("disk", device) as disk, store.reader("ram", device) as ram:
        loaders = {reader.where: TimedLoader(table, np.arange(sizes.images), reader) for reader in (disk, ram)}
        loops = {
            where: OurLoop(sizes, loader, device, batch_size, precision, folder) for where, loader in loaders.items()
        }
        rates: dict[str, list[float]] = {where: [] for where in READERS}
        unhindered: dict[str, list[float]] = {where: [] for where in READERS}
        waits: dict[str, list[float]] = {where: [] for where in READERS}
        for _ in range(rounds):
            for where, loop in loops.items():
                loop.run(_WARM, steps)
                waited = sum(loaders[where].waits[_WARM : _WARM + steps])
                rates[where].append(loop.clock.captions / loop.clock.seconds)
                unhindered[where].append(loop.clock.captions / (loop.clock.seconds - waited))
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
        print_results(run(sizes, store, chosen, batch_size, precision, steps, rounds, Path(folder)))


if __name__ == "__main__":
    main()
