"""From an image to an encoder's input: a square of ``image_size`` pixels, plain or augmented.

Decoding, cropping and resizing happen in Pillow and give bytes; normalisation happens on whole batches, on the
encoder's device (``forward.py``). This module imports no torch, so that decoding processes start fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

WINDOW = 7 / 8
"""Side of a random or centre crop, as a fraction of the image's (224 of 256 pixels)."""
_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes square, and how its augmented views are drawn.

    Attributes:
        resample, crop_pct: the encoder's, as in ``InputSpec``.

    The other fields are as in ``ExtractParameters``.
    """

    fit: str = "squash"
    image_size: int = 224
    seed: int = 1
    hflip: float = 0.5
    vflip: float = 0.0
    crop: str = "resized"
    crop_scale: float = 0.5
    resample: str = "bilinear"
    crop_pct: float = 1.0

    def facts(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> dict[str, Any]:
        """What the features file records of the plain view, enough to map overlays back onto the image.

        Args:
            mean, std: the encoder's.
        """
        return {
            "fit": self.fit,
            "image_size": self.image_size,
            "mean": list(mean),
            "std": list(std),
            "resample": self.resample,
            # left out where the encoder sees all: files of older versions do not have it
            **({} if self.crop_pct == 1 else {"crop_pct": self.crop_pct}),
        }

    def augmentation(self) -> dict[str, Any]:
        """What determines the augmented views."""
        return {
            "seed": self.seed,
            "hflip": self.hflip,
            "vflip": self.vflip,
            "crop": self.crop,
            "crop_scale": self.crop_scale,
            "window": WINDOW,
        }


def visible_box(width: int, height: int, fit: str, crop_pct: float = 1.0) -> tuple[float, float, float, float]:
    """The box ``(left, top, right, bottom)`` of an image, in pixels, that the plain view shows: all of it (squash) or
    the central square (crop), and of that the central part of ``crop_pct`` of its width and height."""
    wide, high = (float(width), float(height)) if fit == "squash" else (float(min(width, height)),) * 2
    wide, high = wide * crop_pct, high * crop_pct
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


@dataclass(frozen=True)
class View:
    """What one view shows: a box of the image in pixels, and whether it is flipped."""

    box: tuple[float, float, float, float]
    horizontal_flip: bool = False
    vertical_flip: bool = False


def draw_view(preprocessing: Preprocessing, image_id: int, view: int, width: int, height: int) -> View:
    """View number ``view`` of an image: 0 is the plain one, the others are drawn from a generator seeded by (seed,
    image id, view).

    Every random number is drawn whether it is used or not, so that no parameter changes the draws of another.
    """
    left, top, right, bottom = visible_box(width, height, preprocessing.fit, preprocessing.crop_pct)
    if view == 0:
        return View((left, top, right, bottom))
    generator = np.random.default_rng([preprocessing.seed, int(image_id) & 0xFFFFFFFFFFFFFFFF, view])
    horizontal, vertical, across, down, area, aspect = generator.random(6)
    wide, high = right - left, bottom - top
    if preprocessing.crop == "none":
        part_x, part_y = 1.0, 1.0
    elif preprocessing.crop == "resized":  # random area and aspect: Szegedy et al. 2015, section 6, but always inside
        scale = preprocessing.crop_scale + (1 - preprocessing.crop_scale) * area
        ratio = _ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** aspect  # uniform in its logarithm
        ratio = min(max(ratio, scale), 1 / scale)  # so that the crop fits into the image
        part_x, part_y = (scale * ratio) ** 0.5, (scale / ratio) ** 0.5
    else:
        part_x = part_y = WINDOW
    if preprocessing.crop == "centre":
        across = down = 0.5
    x, y = left + across * wide * (1 - part_x), top + down * high * (1 - part_y)
    box = (x, y, min(x + part_x * wide, right), min(y + part_y * high, bottom))
    return View(box, bool(horizontal < preprocessing.hflip), bool(vertical < preprocessing.vflip))


def square(image: Image.Image, preprocessing: Preprocessing, image_id: int = 0, view: int = 0) -> np.ndarray:
    """One view of an image as ``(S, S, 3)`` uint8, RGB."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    drawn = draw_view(preprocessing, image_id, view, image.width, image.height)
    side = preprocessing.image_size
    pixels = np.asarray(image.resize((side, side), Image.Resampling[preprocessing.resample.upper()], box=drawn.box))
    if drawn.horizontal_flip:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if drawn.vertical_flip else pixels
