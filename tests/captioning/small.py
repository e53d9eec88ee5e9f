"""A small model over real features: drawn scenes through the bundled encoder, and a decoder with random weights that
says many things."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioner.decoder import DecoderConfig, build_decoder
from captioner.features.extract import extract
from captioner.features.store import FeatureStore
from captioner.images.captions import write_captions
from captioner.images.decode import to_jpeg
from captioner.images.store import write_images
from captioner.model_io import save_model
from captioner.parameters import ExtractParameters, RuntimeParameters
from captioner.vocabulary.vocabulary import SPECIALS, Vocabulary
from tests.evaluation.small import WORDS, fill, model_facts

TEST = range(
    8, 16
)  # rows that stand in the same fours here as in a folder of their own: the last bits of features depend on that


def files(folder: Path) -> list[Path]:
    """Sixteen image files as people have them: large and small, of several formats, one turned by EXIF, one with
    transparency."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(3)
    paths = []
    for number in range(16):
        height, width = [(300, 420), (90, 70), (257, 256), (200, 330)][number % 4]
        coarse = generator.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        kind = {3: "png", 6: "webp", 10: "png"}.get(number, "jpg")
        path = folder / f"{number:02}.{kind}"
        if number == 10:
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        exif = Image.Exif()
        if number in (2, 9):
            exif[0x0112] = 6
        image.save(path, exif=exif)
        paths.append(path)
    return paths


def make_run(
    folder: Path,
    weights: str = "bundled",
    fit: str = "squash",
    encoder: str = "squeezenet1_1",
    layer: str = "final",
    decoder: str = "gru",
    **facts: Any,
) -> dict[str, Path]:
    """Images, features, captions and a model; the keys are ``evaluate``'s arguments, and ``files``. ``facts`` go into
    the model."""
    sources = files(folder / "files")
    records, rows, annotations = [], [], []
    for number, path in enumerate(sources):
        jpeg, height, width = to_jpeg(path.read_bytes(), 256, 90)
        records.append((number, jpeg, height, width))
        rows.append(
            {
                "id": number,
                "file_name": path.name,
                "split": "test" if number in TEST else "val",
                "height": height,
                "width": width,
            }
        )
        annotations.append({"id": number, "image_id": number, "caption": " ".join(WORDS[number % 5 : number % 5 + 6])})
    paths = {name: folder / name for name in ("models", "features.h5", "captions.json", "images.h5")}
    write_images(paths["images.h5"], records)
    write_captions(paths["captions.json"], rows, annotations, {})
    parameters = ExtractParameters(weights=weights, fit=fit, grid=4, layer=layer)
    extract(
        parameters,
        RuntimeParameters(device="cpu", workers=1, threads=1),
        encoder,
        paths["images.h5"],
        paths["features.h5"],
        "scenes",
    )
    store = FeatureStore.open(paths["features.h5"])
    vocabulary = Vocabulary([*SPECIALS, *WORDS], facts={"max_length": 12})
    config = DecoderConfig(
        decoder,
        "soft",
        len(vocabulary),
        6,
        store.shape[3],
        store.shape[2],
        feature_size=8,
        hidden_size=64,
        attention_size=8,
        rows=store.grid[0],
    )
    built = build_decoder(config)
    fill(built, seed=1, end=12.0)
    save_model(paths["models"], built.eval(), vocabulary, {**model_facts(store), **facts})
    return {name.split(".")[0]: path for name, path in paths.items()} | {"files": folder / "files"}


def copy(run: dict[str, Path], folder: Path) -> Path:
    """The model, to be changed."""
    return Path(shutil.copytree(run["models"], folder))


def jpeg(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (60, 50)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()
