"""COCO's captions and results files, from anywhere: checked before a word of them is used."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError

_CAPTIONS = (
    'give a captions file in COCO\'s layout: {"images": [...], "annotations": [{"image_id": 1, "caption": "..."}, ...]}'
)
_RESULTS = 'give a results file in COCO\'s layout: [{"image_id": 1, "caption": "..."}, ...]'


def read_references(path: str | Path) -> dict[Hashable, list[str]]:
    """Image id -> its captions, in file order; images of the list 'images' without a caption have an empty list.

    Raises:
        CaptionerError: the file is missing, no JSON, or not in COCO's captions layout.
    """
    content = _read(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        hint = "a results file, it seems" if isinstance(content, list) else "no list 'annotations'"
        raise CaptionerError(f"{path}: not a captions file ({hint}); {_CAPTIONS}")
    references: dict[Hashable, list[str]] = {}
    images = content.get("images", [])
    if not isinstance(images, list):
        raise CaptionerError(f"{path}: not a captions file ('images' is no list); {_CAPTIONS}")
    for image in images:
        references.setdefault(_id(path, image, "id", "images", _CAPTIONS), [])
    for annotation in content["annotations"]:
        references.setdefault(_id(path, annotation, "image_id", "annotations", _CAPTIONS), []).append(
            _caption(path, annotation, _CAPTIONS)
        )
    return references


def read_results(path: str | Path) -> dict[Hashable, str]:
    """Image id -> its caption, in file order; captions may be empty.

    Raises:
        CaptionerError: the file is missing, no JSON, not in COCO's results layout, empty, or has two captions for an
            image.
    """
    content = _read(path)
    if not isinstance(content, list):
        hint = (
            "a captions file, it seems"
            if isinstance(content, dict) and "annotations" in content
            else f"its top is no list but {type(content).__name__}"
        )
        raise CaptionerError(f"{path}: not a results file ({hint}); {_RESULTS}")
    if not content:
        raise CaptionerError(f"{path}: it has no caption; {_RESULTS}")
    results: dict[Hashable, str] = {}
    for row in content:
        image_id = _id(path, row, "image_id", "the list", _RESULTS)
        if image_id in results:
            raise CaptionerError(f"{path}: image {image_id!r} has two captions; keep one for each image")
        results[image_id] = _caption(path, row, _RESULTS)
    return results


def _read(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{path}: no valid JSON ({error}); get or make the file again") from error


def _id(path: str | Path, row: Any, key: str, where: str, remedy: str) -> Hashable:
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise CaptionerError(
            f"{path}: an entry of {where} has {key} {value!r:.60}, neither a number nor text; {remedy}"
        )
    return value


def _caption(path: str | Path, row: dict[str, Any], remedy: str) -> str:
    value = row.get("caption")
    if not isinstance(value, str):
        raise CaptionerError(f"{path}: the caption of image {row['image_id']!r} is {value!r:.60}, no text; {remedy}")
    return value
