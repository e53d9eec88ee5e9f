"""What checking the rows of a features file costs a training: python -m benchmarks.checksums

Makes a features file of 5,000 images, 7x7x512 in fp16, as of the bundled scenes, in the page cache. All rows are read
once with their checksums and once more without; the difference, which a training pays once, is compared with the epochs
of a training on the same file (batches of 64 captions, a GRU of 256 units, no validation).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.coco import Sizes, make_table
from benchmarks.loops import FitLoop, TimedLoader
from benchmarks.read import write_rows
from captioner.device import prepare_device
from captioner.features import checksums
from captioner.features.store import FeatureStore

BATCH = 64


def read_all(store: FeatureStore, rows: np.ndarray) -> float:
    """Seconds to read all rows in batches."""
    with store.reader("ram") as reader:
        start = time.perf_counter()
        for first in range(0, len(rows), BATCH):
            reader.read(rows[first : first + BATCH])
        return time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--images", default=5000, show_default=True)
@click.option("--epochs", default=6, show_default=True, help="of the training that pays for it once")
@click.option("--repeats", default=5, show_default=True)
def main(images: int, epochs: int, repeats: int) -> None:
    device = prepare_device("cpu", 0)
    sizes = Sizes(images, 5 * images, 49, 512, 2500, 256)
    rows = np.random.default_rng(0).permutation(images)
    with tempfile.TemporaryDirectory() as folder:
        store = write_rows(Path(folder) / "features.h5", images, sizes.positions, sizes.channels)
        read_all(store, rows)  # the pages of the file
        costs = []
        for _ in range(repeats):
            checksums._CHECKS.clear()
            checked = read_all(store, rows)
            costs.append(checked - read_all(store, rows))
        loader = TimedLoader(make_table(sizes), np.arange(images), store.reader("ram"), device)
        with FitLoop(sizes, loader, device, BATCH, "fp32") as loop:
            epoch = loop.whole_epoch()
    cost = float(np.median(costs))
    click.echo(f"{images:,} rows of {store.row_size:,} bytes: checked once in {cost:.3f} s more ({len(costs)} repeats)")
    click.echo(f"an epoch of training: {epoch:.1f} s; of {epochs} epochs the checks are {cost / (epochs * epoch):.2%}")


if __name__ == "__main__":
    main()
