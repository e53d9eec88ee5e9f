"""Extraction end to end against its parts: python -m benchmarks.extract [--device cuda --count 20480]

Measured in turn, in images a second:
  ours     JPEG bytes in images.h5 to rows synced on disk, by the pipeline's own code (the decoding processes are
  started, as in a long run) forward  the bare encoder on normalised tensors that are already in place, with all cores;
  on a GPU the CUDA graph that extraction replays, of
           normalisation and encoder, on pixels that are already there; on a CPU each thread has batches of
           its own, which is faster than all threads on one batch (squeezenet1_1 600 against 485 images a second,
           resnet50 110 against 94; not measured here, for torch's team of threads slows down whatever its process does
           afterwards)
  decode   JPEG bytes to pixels in memory by as many processes, and nothing else
  write    rows of features from memory to the disk, synced as the pipeline syncs them, and nothing else

On a CPU the parts share the cores, so together they allow 1 / (1 / forward + 1 / decode); beside a GPU they allow the
slowest of the three. Every round writes the same file again. The first is slower where the system's disk cache takes
memory that it never had before; it does not count.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections import deque
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.report import measure, print_results, result
from captioner.device import core_count, keep_freed_memory, resolve_device
from captioner.features.blocks import blocks_to_do, extract_blocks
from captioner.features.decoding import JpegPipeline
from captioner.features.encoders import build_encoder
from captioner.features.forward import ImageEncoder, resolve_precision
from captioner.features.layout import DEFAULT_FACTS, create_features
from captioner.features.preprocess import Preprocessing
from captioner.features.syncing import SyncedWriter
from captioner.features.writer import FeatureWriter
from captioner.images.store import ImageStore, write_images


def draw_images(path: Path, count: int) -> None:
    """Images of 256 x 341 pixels and some 25 KB, as photos are after the download stage; a few different ones, over
    and over."""
    generator, jpegs = np.random.default_rng(0), []
    for _ in range(32):
        smooth = Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(
            (341, 256), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(smooth) + generator.normal(0, 4, (256, 341, 3))
        data = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
        jpegs.append(data.getvalue())
    write_images(path, ((number, jpegs[number % len(jpegs)], 256, 341) for number in range(count)))


class Bench:
    """The four things, for one encoder."""

    def __init__(
        self,
        encoder: str,
        store: ImageStore,
        folder: Path,
        device: torch.device,
        precision: str,
        batch_size: int,
        threads: int,
        workers: int,
    ) -> None:
        self.store, self.folder, self.batch_size, self.threads, self.workers = (
            store,
            folder,
            batch_size,
            threads,
            workers,
        )
        keep_freed_memory()  # as the stage does; the bare forward pass has the same advantage here
        self.encode = ImageEncoder(build_encoder(encoder, grid=7), device, precision)
        grid, channels = self.encode.encoder.grid, self.encode.encoder.channels
        self.shape = (len(store), 1, grid[0] * grid[1], channels)
        self.facts = {**DEFAULT_FACTS, "grid": list(grid), "encoder": encoder}
        pixels = np.random.default_rng(0).integers(0, 256, (batch_size, 224, 224, 3), dtype=np.uint8)
        self.pixels = torch.from_numpy(pixels).to(device)
        self.encode.record(batch_size, 224)
        self.batch = self.encode.normalise(self.pixels)
        self.rows = np.random.default_rng(0).standard_normal((batch_size, *self.shape[1:])).astype(np.float16)
        self.blocks = blocks_to_do(np.zeros(len(store), bool), batch_size, 0, 1)

    def ours(self, pipeline: JpegPipeline) -> int:
        with FeatureWriter(self.folder / "features.h5") as writer:
            extract_blocks(self.blocks, pipeline, self.encode, writer, self.threads, lambda _: True)
        return len(self.store)

    def forward(self) -> int:
        cuda = self.encode.device.type == "cuda"
        todo = deque(self.blocks)

        def work() -> None:
            if not cuda:
                torch.set_num_threads(1)
            while True:
                try:
                    todo.popleft()
                except IndexError:
                    return
                if cuda:
                    self.encode.features(self.pixels)
                else:
                    self.encode.encode(self.batch)

        pool = [threading.Thread(target=work) for _ in range(1 if cuda else self.threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        if cuda:
            torch.cuda.synchronize()
        return len(self.blocks) * self.batch_size

    def decode(self, pipeline: JpegPipeline) -> int:
        slots, ring = len(pipeline.slots), deque[int]()
        for number, (first, count) in enumerate(self.blocks):
            if number >= slots:
                pipeline.wait(ring.popleft())
            pipeline.submit(number % slots, first, count)
            ring.append(number % slots)
        for slot in ring:
            pipeline.wait(slot)
        return len(self.store)

    def write(self) -> int:
        with FeatureWriter(self.folder / "features.h5") as writer, SyncedWriter(writer) as synced:
            for first, count in self.blocks:
                synced.write(first, self.rows[:count])
        return len(self.store)

    def run(self, repeats: int) -> dict[str, list[float]]:
        create_features(self.folder / "features.h5", self.shape, range(len(self.store)), self.facts)
        with JpegPipeline(self.store, Preprocessing(), 1, self.batch_size, self.workers) as pipeline:
            things = {
                "ours": lambda: self.ours(pipeline),
                "forward": self.forward,
                "decode": lambda: self.decode(pipeline),
            }
            return measure({**things, "write": self.write}, repeats)


def peak_memory() -> int:
    """MB that this process held at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


@click.command(help=__doc__)
@click.option("--encoders", default="squeezenet1_1,resnet50", show_default=True)
@click.option("--count", default=1280, show_default=True, help="drawn images")
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option(
    "--images", type=click.Path(exists=True, path_type=Path), help="an images file to use instead of drawn images"
)
def main(
    encoders: str, count: int, repeats: int, device: str, precision: str, batch_size: int, images: Path | None
) -> None:
    chosen = resolve_device(device)
    precision = resolve_precision(precision, chosen)
    cores = core_count()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if images is None:
            images = folder / "images.h5"
            draw_images(images, count)
        store = ImageStore.open(images)
        for encoder in encoders.split(","):
            rates = Bench(encoder, store, folder, chosen, precision, batch_size, cores, min(cores, 16)).run(repeats)
            facts = {
                "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu",
                "precision": precision,
                "cores": cores,
                "images": len(store),
                "peak_memory_mb": peak_memory(),
            }
            if chosen.type == "cpu":
                allowed = [1 / (1 / forward + 1 / decode) for forward, decode in zip(rates["forward"], rates["decode"])]
            else:
                allowed = [min(parts) for parts in zip(rates["forward"], rates["decode"], rates["write"])]
            results.append(result(f"extract {encoder} / its parts", rates["ours"], allowed, 0.95, "images/s", **facts))
            target = 0.90 if encoder == "resnet50" else None
            results.append(
                result(
                    f"extract {encoder} / bare forward", rates["ours"], rates["forward"], target, "images/s", **facts
                )
            )
            results.append(
                result(f"extract {encoder} / decoding", rates["ours"], rates["decode"], None, "images/s", **facts)
            )
            results.append(
                result(f"extract {encoder} / writing", rates["ours"], rates["write"], None, "images/s", **facts)
            )
    print_results(results)


if __name__ == "__main__":
    main()
