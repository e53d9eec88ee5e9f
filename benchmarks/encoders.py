"""What encoders give and cost: python -m benchmarks.encoders [--device cuda --count 4096]

Prints the table of docs/encoders.md: channels and map, what a features file with a grid of at most 7 x 7 takes for one
image and for COCO 2017 (123,287 images, one view), and images a second through extraction, from JPEG bytes in images.h5
to rows in the features file, at the input side that the encoder was trained with. Weights are random: they change
nothing in this table. Each encoder runs on as many of the drawn images as take a few seconds, after one batch that does
not count.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from benchmarks.extract import draw_images
from captioner.device import core_count, keep_freed_memory, resolve_device
from captioner.features.blocks import blocks_to_do, extract_blocks
from captioner.features.decoding import JpegPipeline
from captioner.features.encoders import build_encoder
from captioner.features.extract import preprocessing
from captioner.features.forward import ImageEncoder, resolve_precision
from captioner.features.layout import DEFAULT_FACTS, create_features
from captioner.features.writer import FeatureWriter
from captioner.images.store import ImageStore
from captioner.parameters import ExtractParameters

COCO = 123_287
ENCODERS = (
    # the five of the pipeline's reference paper
    "resnet152",
    "alexnet",
    "vgg19",
    "densenet201",
    "squeezenet1_1",
    "timm/tf_efficientnet_lite0",
    "timm/tf_efficientnet_lite0:last_stage",
    "timm/tf_efficientnet_lite2",
    "timm/regnety_016",
    "timm/convnext_tiny",
    "timm/swin_tiny_patch4_window7_224",
    "timm/vit_base_patch16_clip_224.openai",
    "timm/resnet50_clip.openai",
    "timm/vit_small_patch14_dinov2.lvd142m",
)
BATCH = 32


class Row(NamedTuple):
    """One encoder. Bytes are of the features of one image."""

    encoder: str
    side: int
    channels: int
    map: tuple[int, int]
    grid: tuple[int, int]
    bytes: int
    images_per_second: float


def run(name: str, images: Path, folder: Path, device: torch.device, precision: str, seconds: float) -> Row:
    """Measure one encoder; ``NAME:LAYER`` names ``extract.layer``."""
    name, _, layer = name.partition(":")
    encoder = build_encoder(name, grid=7, layer=layer or "final")
    encode = ImageEncoder(encoder, device, precision)
    side, store = encoder.spec.image_size, ImageStore.open(images)
    plan = preprocessing(ExtractParameters(), encoder.spec)
    shape = (len(store), 1, encoder.grid[0] * encoder.grid[1], encoder.channels)
    out, cores = folder / "features.h5", core_count()
    create_features(out, shape, range(len(store)), {**DEFAULT_FACTS, "grid": list(encoder.grid), "encoder": name})
    encode.record(BATCH, side)
    blocks = blocks_to_do(np.zeros(len(store), bool), BATCH, 0, 1)
    done, end = 0, 0.0

    def between(count: int) -> bool:
        nonlocal done
        done += count
        return time.perf_counter() < end

    with JpegPipeline(store, plan, 1, BATCH, min(cores, 16)) as pipeline, FeatureWriter(out) as writer:
        extract_blocks(blocks[:1], pipeline, encode, writer, cores, lambda _: True)
        start = time.perf_counter()
        end = start + seconds
        extract_blocks(blocks[1:], pipeline, encode, writer, cores, between)
        rate = done / (time.perf_counter() - start)
    return Row(
        name + (f", {layer}" if layer else ""),
        side,
        encoder.channels,
        encoder.map,
        encoder.grid,
        shape[2] * shape[3] * 2,
        rate,
    )


def table(rows: list[Row], device: str) -> str:
    """Markdown."""
    lines = [
        f"| encoder | input | channels | map | stored grid | KB an image | GB for COCO | images/s, {device} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        map, grid = (f"{rows}x{columns}" for rows, columns in (row.map, row.grid))
        lines.append(
            f"| `{row.encoder}` | {row.side} | {row.channels:,} | {map} | {grid} | {row.bytes / 1000:,.0f} | "
            f"{row.bytes * COCO / 1e9:.1f} | {row.images_per_second:,.0f} |"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--encoders", default=",".join(ENCODERS), show_default=True)
@click.option("--count", default=2048, show_default=True, help="drawn images at most")
@click.option("--seconds", default=8.0, show_default=True, help="for each encoder")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
def main(encoders: str, count: int, seconds: float, device: str, precision: str) -> None:
    chosen = resolve_device(device)
    precision = resolve_precision(precision, chosen)
    keep_freed_memory()  # as the stage does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_images(folder / "images.h5", count)
        rows = []
        for encoder in encoders.split(","):
            rows.append(run(encoder, folder / "images.h5", folder, chosen, precision, seconds))
            click.echo(f"{encoder}: {rows[-1].images_per_second:.1f} images/s", err=True)
    where = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{core_count()} CPU cores"
    click.echo(table(rows, f"{where}, {precision}"))
    click.echo(json.dumps([row._asdict() for row in rows]))


if __name__ == "__main__":
    main()
