"""From an image file to an encoder's input, as the stages ``download`` and ``extract`` would make it.

As a program (``python -m captioner.features.reading``) it is a decoding process: untrusted bytes are decoded there, so
that an image that crashes the decoder ends nothing else. Each line of JSON asks for a few images; the answer is a line
of JSON and the bytes that it announces. It imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image

from captioner.features.preprocess import Preprocessing, square, visible_box
from captioner.images.decode import BadImage, read_regular, store_image, to_image

_SHOWN = 424  # longest side in pixels of the image that is returned for overlays


@dataclass(frozen=True)
class Recipe:
    """How a model's images were made.

    Attributes:
        image_size, jpeg_quality: of the stored images.
        fit, side, resample, crop_pct: how they become the encoder's squares, as in ``Preprocessing``.
    """

    image_size: int
    jpeg_quality: int
    fit: str
    side: int
    resample: str = "bilinear"
    crop_pct: float = 1.0


@dataclass(frozen=True)
class ReadImage:
    """An image that was read, or why it could not be.

    Attributes:
        pixels: (S, S, 3) uint8, what the encoder sees; None where ``error`` says why.
        error: one line.
        image: small and upright, for overlays, where asked for.
        box: the part of it that the encoder sees, as fractions of its width and height.
    """

    pixels: np.ndarray | None
    error: str | None = None
    image: Image.Image | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


def read_file(path: str) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImage: no file, or one that cannot be read.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from None
    except ValueError:  # a zero byte in the name
        raise BadImage("no file has such a name") from None
    if data is None:
        raise BadImage("no file")
    return data


def read_image(source: str | Image.Image, recipe: Recipe, shown: bool) -> ReadImage:
    """Read a file or an open image.

    Args:
        shown: also give the image itself.
    """
    try:
        if isinstance(source, Image.Image):
            image = store_image(source, recipe.image_size, recipe.jpeg_quality)
        else:
            image = to_image(read_file(source), recipe.image_size, recipe.jpeg_quality)
    except BadImage as error:
        return ReadImage(None, error.reason)
    pixels = square(
        image,
        Preprocessing(recipe.fit, recipe.side, resample=recipe.resample, crop_pct=recipe.crop_pct),
    )
    if not shown:
        return ReadImage(pixels)
    width, height = image.size
    left, top, right, bottom = visible_box(width, height, recipe.fit, recipe.crop_pct)
    scale = min(1.0, _SHOWN / max(width, height))
    small = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
    return ReadImage(pixels, None, small, (left / width, top / height, right / width, bottom / height))


def _work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it may reach the whole group; this process ends with its input
    # as in captioner.features.decoding: a batch job does not preempt the encoder
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    for line in sys.stdin.buffer:
        task = json.loads(line)
        found = [read_image(path, Recipe(**task["recipe"]), task["shown"]) for path in task["paths"]]
        facts = [{"error": read.error, "size": read.image and read.image.size, "box": read.box} for read in found]
        answers.write(json.dumps(facts).encode() + b"\n")
        for read in found:
            if read.pixels is not None:
                answers.write(np.ascontiguousarray(read.pixels).data)
        for read in found:
            if read.image is not None:
                answers.write(read.image.tobytes())
        answers.flush()


if __name__ == "__main__":
    try:
        _work()
    except BrokenPipeError:
        os._exit(0)  # the reader has ended
