"""Small images and data sets for the tests of the download stage."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from captioner.images.download import download
from captioner.parameters import DownloadParameters, RuntimeParameters

SOURCES = Path(__file__).resolve().parents[2] / "sources"


def make_image(width: int = 40, height: int = 30, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth image, different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(width: int = 40, height: int = 30, seed: int = 0) -> bytes:
    """A small JPEG."""
    return encoded(make_image(width, height, seed), quality=85)


def custom_set(folder: Path, count: int, splits: tuple[str, ...] = ()) -> Path:
    """``count`` images with two captions each and a table; splits alternate. Returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{number:03d}.jpg"
        (folder / name).write_bytes(jpeg(seed=number))
        split = splits[number % len(splits)] if splits else ""
        rows += [(name, f"a picture number {number}", split), (name, f"the same picture {number}", split)]
    return table(folder / "table.csv", rows)


def table(path: Path, rows: list[tuple], header: tuple = ("image", "caption", "split")) -> Path:
    """A CSV file."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def coco_json(names: dict[int, str], part: str = "train2017", captions: int = 2) -> dict:
    """COCO captions for images by id."""
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": i, "file_name": name, "height": 30, "width": 40, "coco_url": f"http://localhost/{part}/{name}"}
            for i, name in names.items()
        ],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "caption": f"Caption {k} of {i}."} for i in names for k in range(captions)
        ],
    }


def coco_set(root: Path, train: int = 8, val: int = 4) -> Path:
    """A COCO 2017 copy with few images, in folders."""
    (root / "annotations").mkdir(parents=True)
    for part, first, count in (("train2017", 1, train), ("val2017", 501, val)):
        (root / part).mkdir()
        names = {number: f"{number:012d}.jpg" for number in range(first, first + count)}
        for number, name in names.items():
            (root / part / name).write_bytes(jpeg(seed=number))
        (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(coco_json(names, part)))
    return root


def run(
    folder: Path,
    dataset: str = "custom",
    runtime: RuntimeParameters | None = None,
    sources: Path = SOURCES,
    **parameters,
) -> Path:
    """Run the stage in this process; ``parameters`` are fields of DownloadParameters. Returns the folder."""
    settings = replace(
        DownloadParameters(),
        **{key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()},
    )
    download(settings, runtime or RuntimeParameters(workers=1), dataset, folder, sources)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }


def skipped(folder: Path) -> dict[str, str]:
    """skipped.csv as image -> reason."""
    with open(folder / "skipped.csv", encoding="utf-8", newline="") as file:
        return {row["image"]: row["reason"] for row in csv.DictReader(file)}
