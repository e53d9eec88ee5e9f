"""Reading random rows for training, copied into a batch: python -m benchmarks.read [--device cuda]

warm  the file is in the page cache: our memory-mapped reader against a plain memory-map gather
cold  the page cache is emptied of the file before each reading: our disk reader against ``os.pread`` in a loop
and what not to do: h5py's fancy indexing on a chunked file, against the plain gather
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click
import h5py
import numpy as np
import torch

from benchmarks.report import compare, print_results
from captioner.features.layout import DEFAULT_FACTS, create_features
from captioner.features.store import FeatureStore
from captioner.features.writer import FeatureWriter


def write_rows(path: Path, count: int, positions: int, channels: int) -> FeatureStore:
    """A features file of random rows."""
    generator = np.random.default_rng(0)
    some = generator.standard_normal((64, 1, positions, channels)).astype(np.float16)
    create_features(path, (count, 1, positions, channels), range(count), {**DEFAULT_FACTS, "grid": [1, positions]})
    with FeatureWriter(path) as writer:
        for first in range(0, count, 64):
            writer.write(first, some[: min(64, count - first)])
        writer.sync()
    return FeatureStore.open(path)


def forget(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@click.command(help=__doc__)
@click.option("--rows", default=8000, show_default=True)
@click.option("--positions", default=49, show_default=True)
@click.option("--channels", default=2048, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--batches", default=50, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="also read from this GPU's memory")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="where the file is made; cold reading needs a real disk",
)
def main(
    rows: int,
    positions: int,
    channels: int,
    batch_size: int,
    batches: int,
    repeats: int,
    device: str,
    folder: Path | None,
) -> None:
    generator = np.random.default_rng(1)
    wanted = [generator.choice(rows, batch_size, replace=batch_size > rows) for _ in range(batches)]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "features.h5"
        store = write_rows(path, rows, positions, channels)
        facts = {
            "row_bytes": store.row_size,
            "rows": rows,
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
        }
        plain = np.memmap(path, np.float16, "r", store.offset, (rows, positions, channels))
        results = []

        def gather() -> int:
            for batch in wanted:
                torch.from_numpy(plain[batch])
            return batch_size * batches

        def read(reader: object, some: list[np.ndarray], cold: bool = False) -> int:
            if cold:
                forget(path)
            for batch in some:
                reader.read(batch)
            return batch_size * len(some)

        with store.reader("ram") as ram:
            results.append(
                compare(
                    "ram reader, warm / memory-map gather",
                    lambda: read(ram, wanted),
                    gather,
                    0.8,
                    repeats,
                    "rows/s",
                    **facts,
                )
            )
        with store.reader("disk") as disk:
            results.append(
                compare(
                    "disk reader, warm / memory-map gather",
                    lambda: read(disk, wanted),
                    gather,
                    None,
                    repeats,
                    "rows/s",
                    **facts,
                )
            )

            few = wanted[: max(1, batches // 5)]
            descriptor = os.open(path, os.O_RDONLY)

            def pread() -> int:
                forget(path)
                for batch in few:
                    target = np.empty((batch_size, store.row_size), np.uint8)
                    for index, row in enumerate(batch):
                        target[index] = np.frombuffer(
                            os.pread(descriptor, store.row_size, store.offset + int(row) * store.row_size), np.uint8
                        )
                return batch_size * len(few)

            results.append(
                compare(
                    "disk reader, cold / os.pread in a loop",
                    lambda: read(disk, few, True),
                    pread,
                    0.9,
                    repeats,
                    "rows/s",
                    **facts,
                )
            )
            os.close(descriptor)
        if torch.device(device).type == "cuda":
            with store.reader("gpu", device) as gpu:

                def on_gpu() -> int:
                    read(gpu, wanted)
                    torch.cuda.synchronize()
                    return batch_size * batches

                results.append(
                    compare("gpu reader / memory-map gather", on_gpu, gather, None, repeats, "rows/s", **facts)
                )
        fewer = min(rows, 2000)
        with h5py.File(path.with_name("chunked.h5"), "w") as file:
            file.create_dataset("features", data=plain[:fewer], chunks=True)
        with h5py.File(path.with_name("chunked.h5"), "r") as file:
            chosen = np.sort(generator.choice(fewer, batch_size, replace=False))

            def fancy() -> int:
                torch.from_numpy(file["features"][chosen])
                return batch_size

            results.append(
                compare(
                    "h5py fancy index, chunked / memory-map gather", fancy, gather, None, repeats, "rows/s", **facts
                )
            )
    print_results(results)


if __name__ == "__main__":
    main()
