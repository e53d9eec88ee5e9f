"""From a picture file to what the encoder sees, as the stages ``download`` and ``extract`` would do it one after the
other.

Run as a program (``python -m captioner.features.reading``) it is one of the processes that decode: strangers' bytes are
decoded there, so that a picture that brings a decoder down takes nothing else with it. A line of JSON comes in for a
few pictures; out go a line of JSON and the bytes that it announces. It loads no torch.
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

_SHOWN = 424  # longest side in pixels of the picture that is handed out for overlays


@dataclass(frozen=True)
class Recipe:
    """How a model's pictures were made.

    Attributes:
        image_size, jpeg_quality: of the stored pictures.
        fit, side: how they become the encoder's squares.
    """

    image_size: int
    jpeg_quality: int
    fit: str
    side: int


@dataclass(frozen=True)
class ReadPicture:
    """A picture that was read, or why it could not be.

    Attributes:
        pixels: (S, S, 3) uint8, what the encoder sees; None where ``error`` says why.
        error: one line.
        picture: small and upright, for overlays, where asked for.
        box: the part of it that the encoder sees, as shares.
    """

    pixels: np.ndarray | None
    error: str | None = None
    picture: Image.Image | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


def read_file(path: str) -> bytes:
    """The bytes of a picture file.

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


def read_picture(source: str | Image.Image, recipe: Recipe, shown: bool) -> ReadPicture:
    """Read a file or an open picture.

    Args:
        shown: also give the picture itself.
    """
    try:
        if isinstance(source, Image.Image):
            picture = store_image(source, recipe.image_size, recipe.jpeg_quality)
        else:
            picture = to_image(read_file(source), recipe.image_size, recipe.jpeg_quality)
    except BadImage as error:
        return ReadPicture(None, error.reason)
    pixels = square(picture, Preprocessing(recipe.fit, recipe.side))
    if not shown:
        return ReadPicture(pixels)
    width, height = picture.size
    left, top, right, bottom = visible_box(width, height, recipe.fit)
    scale = min(1.0, _SHOWN / max(width, height))
    small = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
    return ReadPicture(pixels, None, small, (left / width, top / height, right / width, bottom / height))


def _work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it may reach the whole group; this process ends when its input does
    if hasattr(
        os, "sched_setscheduler"
    ):  # as in captioner.features.decoding: a batch job does not push the encoder off its core
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin.buffer:
        task = json.loads(line)
        found = [read_picture(path, Recipe(**task["recipe"]), task["shown"]) for path in task["paths"]]
        facts = [{"error": read.error, "size": read.picture and read.picture.size, "box": read.box} for read in found]
        answers.write(json.dumps(facts).encode() + b"\n")
        for read in found:
            if read.pixels is not None:
                answers.write(np.ascontiguousarray(read.pixels))
        for read in found:
            if read.picture is not None:
                answers.write(read.picture.tobytes())
        answers.flush()


if __name__ == "__main__":
    try:
        _work()
    except BrokenPipeError:
        os._exit(0)  # nobody is there any more
