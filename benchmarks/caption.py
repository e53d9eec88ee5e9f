"""Captions of a folder against extraction and search alone, and the time to the first caption: python -m
benchmarks.caption [--device cuda]

Measured in turn, in images a second:
  ours     JPEG files in a folder to captions, by `Captioner.caption` (its processes are started, as in a long run)
  extract  the same images from images.h5 to features on disk, by the stage's own code
  search   captions of those features in memory, a batch on each core

One after the other, extraction and search allow 1 / (1 / extract + 1 / search). The time to the first caption is that
of a whole command, `captioner caption` of one image, from its start to its first line; its rate is compared with one
in 5 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import click
import torch

from benchmarks.extract import Bench, draw_images
from benchmarks.report import measure, print_results, result
from captioner import Captioner
from captioner.device import core_count, resolve_device
from captioner.features.decoding import JpegPipeline
from captioner.features.forward import resolve_precision
from captioner.features.layout import create_features
from captioner.features.preprocess import Preprocessing
from captioner.features.store import FeatureStore
from captioner.images.store import ImageStore
from captioner.search import beam_search

_SEARCHED = 64  # images searched at once, as evaluation does
_FIRST = 5.0  # seconds in which the first caption is wanted


def search_all(captioner: Captioner, features: torch.Tensor, beam: int) -> int:
    """Captions of features (N, P, C) on the model's device."""
    todo = deque(features.split(_SEARCHED))
    decoder, cuda = captioner.model.decoder, captioner.device.type == "cuda"

    def work() -> None:
        if not cuda:
            torch.set_num_threads(1)
        while True:
            try:
                batch = todo.popleft()
            except IndexError:
                return
            beam_search(decoder, batch, beam)

    pool = [threading.Thread(target=work) for _ in range(1 if cuda else core_count())]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return len(features)


def first_caption(image: Path, model: Path, device: str, *options: str) -> float:
    """Seconds from the start of the command, with further ``options``, to its first line."""
    command = [
        sys.executable,
        "-c",
        "from captioner.cli import main; main()",
        "caption",
        str(image),
        "--model",
        str(model),
        "--device",
        device,
        *options,
    ]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        if not process.stdout.readline():
            raise SystemExit("captioner caption said nothing")
        return time.perf_counter() - begin


@click.command(help=__doc__)
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=Path("models"), show_default=True)
@click.option("--images", default=1024, show_default=True)
@click.option("--beam", default=5, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(model: Path, images: int, beam: int, repeats: int, device: str) -> None:
    torch.set_num_threads(1)  # before any arithmetic: a team of threads would slow down all that follows
    chosen, cores = resolve_device(device), core_count()
    with tempfile.TemporaryDirectory() as name, Captioner.load(model, device) as captioner:
        folder = Path(name)
        draw_images(folder / "images.h5", images)
        store = ImageStore.open(folder / "images.h5")
        files = [folder / f"{row:06}.jpg" for row in range(images)]
        for row, file in enumerate(files):
            file.write_bytes(store.jpeg(row))
        encoder = captioner.model.config["encoder"]
        first = [first_caption(files[0], model, device) for _ in range(repeats + 1)][1:]
        bench = Bench(encoder, store, folder, chosen, resolve_precision("auto", chosen), 32, cores, min(cores, 16))
        bench.encode = captioner.encoder  # the length of captions, and so the time of search, depends on the features
        create_features(folder / "features.h5", bench.shape, store.image_ids, bench.facts)
        with JpegPipeline(store, Preprocessing(), 1, 32, min(cores, 16)) as pipeline:
            bench.ours(pipeline)
            stored = FeatureStore.open(folder / "features.h5")
            with stored.reader("ram", "cpu") as reader:
                features = reader.read(stored.rows(store.image_ids)).to(chosen)
            rates = measure(
                {
                    "ours": lambda: len(captioner.caption(files, beam, 1)),
                    "extract": lambda: bench.ours(pipeline),
                    "search": lambda: search_all(captioner, features, beam),
                },
                repeats,
            )
    allowed = [
        1 / (1 / extract + 1 / search) for extract, search in zip(rates["extract"], rates["search"], strict=True)
    ]
    facts = {
        "device": chosen.type,
        "cores": cores,
        "images": images,
        "beam": beam,
        **{name: round(statistics.median(rates[name]), 1) for name in ("extract", "search")},
    }
    print_results(
        [
            result(
                f"caption {encoder}: folder / extraction + search", rates["ours"], allowed, 0.90, "images/s", **facts
            ),
            result(
                f"caption {encoder}: first caption / 5 s",
                [1 / seconds for seconds in first],
                [1 / _FIRST] * len(first),
                1.0,
                "starts/s",
                seconds=round(statistics.median(first), 2),
            ),
        ]
    )


if __name__ == "__main__":
    main()
