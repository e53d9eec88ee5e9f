"""Randomly changed input files: they raise no other errors than those for bad input."""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioner.errors import CaptionerError
from captioner.images.captions import CaptionSet
from captioner.images.decode import BadImage, to_jpeg
from captioner.images.records import Absent, file_source
from captioner.images.splits import KarpathySplit
from captioner.parameters import load_parameters, parse_parameters

ODD = [None, True, 0, -1, 1.5, 10**30, float("nan"), "", "x", "\ud800", "\0", [], {}, [[]], {"id": 1}]
CAPTIONS = {
    "info": {"year": 1},
    "images": [{"id": i, "file_name": f"{i}.jpg", "split": ("train", "val", "test")[i % 3]} for i in range(6)],
    "annotations": [{"id": i, "image_id": i % 6, "caption": f"a dog {i}"} for i in range(12)],
}
KARPATHY = {
    "images": [
        {"split": ("train", "restval", "val", "test")[i % 4], "filename": f"{i}.jpg", "cocoid": i} for i in range(8)
    ]
}


def mutated_bytes(data: bytes, generator: random.Random) -> bytes:
    """A few bytes set, deleted or inserted, mostly near the front; sometimes cut off."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 2, 4, 16))):
        at = generator.randrange(min(len(changed), 600) if generator.random() < 0.6 else len(changed))
        kind = generator.random()
        if kind < 0.6:
            changed[at] = generator.choice((generator.randrange(256), 0, 255))
        elif kind < 0.75:
            changed[at : at + 4] = b"\xff\xff\xff\xff"
        elif kind < 0.85:
            del changed[at : at + 3]
        elif kind < 0.95:
            changed[at:at] = generator.randbytes(3)
        else:
            changed = changed[: at + 1]
        if not changed:
            break
    return bytes(changed)


def mutated(content: Any, generator: random.Random) -> Any:
    """One to three values anywhere in a JSON-like content replaced by odd ones or removed."""
    content = copy.deepcopy(content)
    for _ in range(generator.randint(1, 3)):
        parent, key = None, None
        index = content
        while isinstance(index, (dict, list)) and index and (parent is None or generator.random() < 0.7):
            parent, key = index, generator.choice(list(index) if isinstance(index, dict) else range(len(index)))
            index = parent[key]
        if parent is None:
            return generator.choice(ODD)
        if generator.random() < 0.75:
            parent[key] = copy.deepcopy(generator.choice(ODD))
        else:
            del parent[key]
    return content


def images() -> list[bytes]:
    rgb = Image.effect_noise((90, 70), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {}),
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "MPO", {}),
        (rgb.convert("RGBA"), "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 0}),
        (rgb.convert("I;16"), "PNG", {}),
        (rgb.convert("P"), "GIF", {}),
        (rgb, "BMP", {}),
        (rgb, "WEBP", {}),
        (rgb, "TIFF", {}),
        (rgb.convert("F"), "TIFF", {}),
        (rgb, "PPM", {}),
    ]
    files = []
    for image, name, options in kinds:
        image.save(buffer := io.BytesIO(), name, **options)
        files.append(buffer.getvalue())
    return files


def test_images():
    generator, files = random.Random(1), images()
    sound = 0
    for turn in range(1000):
        data = files[turn] if turn < len(files) else mutated_bytes(generator.choice(files), generator)
        try:
            jpeg, height, width = to_jpeg(data, 32, 90)
        except BadImage as error:
            assert turn >= len(files), f"a sound image is refused: {error}"
            assert error.reason and "\n" not in error.reason
            continue
        image = Image.open(io.BytesIO(jpeg), formats=("JPEG",))
        image.load()
        assert image.mode == "RGB" and image.size == (width, height)
        sound += 1
    assert sound > 130  # the changes are not all so large that nothing but the first check is tried


@pytest.mark.parametrize(
    "content, read",
    [
        (CAPTIONS, lambda path: CaptionSet.load(path).fingerprint),
        (KARPATHY, lambda path: KarpathySplit(json.loads(path.read_text()), str(path))),
    ],
)
def test_json(tmp_path: Path, content: Any, read: Callable[[Path], Any]):
    generator, path = random.Random(2), tmp_path / "file.json"
    for _ in range(400):
        changed = mutated(content, generator)
        if not isinstance(changed, dict) and content is KARPATHY:
            continue  # its readers hand over objects only
        path.write_text(json.dumps(changed))
        expect_one_line(lambda: read(path))


def test_captions_bytes(tmp_path: Path):
    generator, path = random.Random(3), tmp_path / "captions.json"
    for _ in range(300):
        path.write_bytes(mutated_bytes(json.dumps(CAPTIONS).encode(), generator))
        expect_one_line(lambda: CaptionSet.load(path).fingerprint)


def test_parameters(tmp_path: Path):
    generator, path = random.Random(4), tmp_path / "params.yaml"
    content = {
        "seed": 1,
        "dataset": "scenes",
        "train": {"epochs": 3, "dropout": 0.5},
        "evaluate": {"beam_sizes": [1, 3]},
    }
    content["extract"] = {"grid": 7}
    text = b"seed: 1\ndataset: scenes\ntrain:\n  epochs: 3\n  dropout: 0.5\nevaluate:\n  beam_sizes: [1, 3]\n"
    for _ in range(80):
        changed = mutated(content, generator)
        expect_one_line(lambda: parse_parameters(changed))
        path.write_bytes(mutated_bytes(text, generator))
        expect_one_line(lambda: load_parameters(path))
    for data in (
        b"[" * 5000,
        b"seed: 2001-13-45",
        b"seed: " + b"9" * 5000,
        b"\xff\xfe",
        b"seed: !!python/object/apply:os.getpid []",
    ):
        path.write_bytes(data)
        with pytest.raises(CaptionerError):
            load_parameters(path)


def test_image_id_beyond_64_bits(tmp_path: Path):
    content = {
        "images": [{"id": 2**63, "file_name": "a.jpg", "split": "train"}],
        "annotations": [{"image_id": 2**63, "caption": "a dog"}],
    }
    (path := tmp_path / "captions.json").write_text(json.dumps(content))
    with pytest.raises(CaptionerError, match="64-bit integer"):
        CaptionSet.load(path)


def test_a_name_that_no_file_can_have(tmp_path: Path):
    for name in ("\ud800.jpg", "a\0.jpg", "a" * 5000):
        assert file_source(tmp_path / name, "file not found") == Absent("file not found")


def expect_one_line(read: Callable[[], Any]) -> None:
    try:
        read()
    except CaptionerError as error:
        assert "\n" not in error.message
