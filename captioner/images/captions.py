"""``captions.json``: COCO's captions format plus the ``split`` of each image; readable by pycocotools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.fingerprint import fingerprint
from captioner.sidecar import write_atomically

SPLITS = ("train", "val", "test")
ONE_IMAGE = (
    "CIDEr-D is 0 for a single image (a word that is in all images has no weight) and other scores say little; give "
    "more images this split, or, without a split of your own, raise download.val_share"
)


class CaptionSet:
    """The validated captions of a data set: every image has a split and at least one non-empty caption."""

    def __init__(
        self, path: Path, images: dict[int, dict[str, Any]], captions: dict[int, list[str]], info: dict[str, Any]
    ) -> None:
        self.path, self.info = path, info
        self._images, self._captions = images, captions

    @classmethod
    def load(cls, path: str | Path) -> CaptionSet:
        """Read and check a captions file.

        Raises:
            CaptionerError: the file is missing, not JSON or not in COCO's captions format, or an image id is repeated,
                unknown, or without captions or split.
        """
        path = Path(path)
        content = read_json(path)
        images = {}
        for image in _list(path, content, "images"):
            number, split = _integer(path, image, "id", "images"), image.get("split")
            if number in images:
                raise _bad(path, f"image id {number} occurs twice in 'images'")
            if split not in SPLITS:
                raise _bad(path, f"image {number} has split {split!r}, not one of {', '.join(SPLITS)}")
            if not isinstance(image.get("file_name"), str):
                raise _bad(path, f"image {number} has no 'file_name'")
            images[number] = image
        captions: dict[int, list[str]] = {number: [] for number in images}
        for annotation in _list(path, content, "annotations"):
            number, text = _integer(path, annotation, "image_id", "annotations"), annotation.get("caption")
            if number not in captions:
                raise _bad(path, f"a caption is for image {number}, which is not in 'images'")
            if not isinstance(text, str) or not text.strip():
                raise _bad(path, f"a caption of image {number} is empty or not text")
            captions[number].append(text)
        uncaptioned = next((number for number, texts in captions.items() if not texts), None)
        if uncaptioned is not None:
            raise _bad(path, f"image {uncaptioned} has no caption")
        info = content.get("info")
        return cls(path, images, captions, info if isinstance(info, dict) else {})

    def __len__(self) -> int:
        return len(self._images)

    def image_ids(self, split: str) -> list[int]:
        """Image ids of a split (``train``, ``val`` or ``test``) in file order; may be empty."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r}")
        return [number for number, image in self._images.items() if image["split"] == split]

    def captions(self, image_id: int) -> list[str]:
        """The captions of an image, in file order, at least one."""
        self._known(image_id)
        return list(self._captions[image_id])

    def split_of(self, image_id: int) -> str:
        """``train``, ``val`` or ``test``."""
        return self._known(image_id)["split"]

    def file_name(self, image_id: int) -> str:
        """The image's file name in its data set."""
        return self._known(image_id)["file_name"]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of ids, file names, splits and captions in file order."""
        return fingerprint(
            {
                "images": [
                    [i, image["file_name"], image["split"], self._captions[i]] for i, image in self._images.items()
                ]
            }
        )

    def _known(self, image_id: int) -> dict[str, Any]:
        try:
            return self._images[image_id]
        except KeyError:
            raise CaptionerError(
                f"{self.path}: no image with id {image_id}; images, features and captions must come from the same "
                "download"
            ) from None


def write_captions(
    path: str | Path, images: Sequence[dict[str, Any]], annotations: Iterable[dict[str, Any]], info: dict[str, Any]
) -> None:
    """Write a captions file atomically; the same arguments give the same bytes.

    Args:
        path: the file.
        images: dictionaries with id, file_name, split, height, width.
        annotations: dictionaries with id, image_id, caption.
        info: facts about the data set (description, licence, counts).
    """
    content = {
        "info": info,
        "licenses": [],
        "type": "captions",
        "images": list(images),
        "annotations": list(annotations),
    }
    write_atomically(path, json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; CaptionerError if it is missing, not JSON, or not an object."""
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise CaptionerError(f"{path}: not found; check the path, or run the download stage first") from error
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{path}: not valid JSON ({error}); download or create the file again") from error
    if not isinstance(content, dict):
        raise _bad(path, f"its top level is a {type(content).__name__}, not an object")
    return content


def _list(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = content.get(key)
    if not isinstance(rows, list):
        raise _bad(path, f"it has no list '{key}'")
    for row in rows:
        if not isinstance(row, dict):
            raise _bad(path, f"'{key}' contains a value of type {type(row).__name__}; all entries must be objects")
    return rows


def _integer(path: Path, row: dict[str, Any], key: str, where: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 63:
        raise _bad(path, f"{key} {value!r} in '{where}' is not a 64-bit integer")
    return value


def _bad(path: Path, what: str) -> CaptionerError:
    return CaptionerError(
        f"{path}: not a captions file: {what}; give a file in COCO's captions format, or run the download stage again"
    )
