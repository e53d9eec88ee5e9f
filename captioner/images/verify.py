"""Verifies an images file: index, completeness, fingerprint, and every image."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from captioner.errors import CaptionerError
from captioner.images.store import ImageStore

_MAX_LISTED = 20


def verify_images(path: str | Path) -> list[str]:
    """All problems of an images file, one line each; an empty list if there are none.

    The fingerprint is recomputed, and each image is decoded and compared with its stored size. A bad file raises no
    error.
    """
    try:
        store = ImageStore.open(path)
    except CaptionerError as error:
        return [error.message]
    problems = []
    if store.content_fingerprint() != store.fingerprint:
        problems.append(
            f"{path}: its content does not match its fingerprint {store.fingerprint}; create it again with the "
            "download stage"
        )
    bad = 0
    for row, image_id in enumerate(store.image_ids):
        fault = _fault(store, row)
        if fault:
            bad += 1
            if bad <= _MAX_LISTED:
                problems.append(f"{path}: image {image_id} (row {row}): {fault}")
    if bad > _MAX_LISTED:
        problems.append(f"{path}: {bad - _MAX_LISTED} more bad images")
    return problems


def _fault(store: ImageStore, row: int) -> str:
    height, width = (int(side) for side in store.sizes[row])
    try:
        image = Image.open(io.BytesIO(store.jpeg(row)), formats=("JPEG",))
        if image.size != (width, height):
            return f"is {image.width}x{image.height} pixels instead of {width}x{height}"
        image.load()
    except CaptionerError as error:
        return error.message
    except Exception as error:  # decoders raise almost anything on damaged bytes
        return f"cannot be decoded ({type(error).__name__})"
    return ""
