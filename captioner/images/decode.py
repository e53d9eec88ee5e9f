"""Untrusted picture bytes to JPEG bytes of a bounded size.

Whatever a picture is (palette, alpha, CMYK, 16 bits, rotated by EXIF), what comes out is an RGB JPEG whose shorter side
is at most ``image_size``. Colour profiles are ignored; of an animation the first frame is taken; 1x1 is a picture too.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# TiffImagePlugin and WebPImagePlugin register their formats: Pillow loads only the commonest by itself.
from PIL import (
    ExifTags,
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

# Formats that the web and cameras use; each more would be one more decoder open to strangers' bytes.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MOST_BYTES = 256 << 20
# A JPEG is decoded at a fraction of its size (draft mode); everything else needs several bytes a pixel at once.
MOST_PIXELS_JPEG = 178_000_000
MOST_PIXELS = 89_000_000
_METADATA = 1 << 16  # a JPEG larger than its bare pixels and this carries something else; it is encoded anew


class BadPicture(Exception):
    """A picture that is left out; ``reason`` is one line without a path or an address, for skipped.csv."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(re.sub(r"<[^>]*at 0x[0-9a-fA-F]+>", "", reason).split())
        super().__init__(self.reason)


def read_regular(path: str) -> bytes | None:
    """The bytes of a file, of one that grows meanwhile at most one more than ``MOST_BYTES``; None of a folder, pipe or
    device.

    Raises:
        BadPicture: the file is too large.
        OSError, ValueError: no such file, or one that cannot be read; no file can have such a name.
    """
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # a pipe without a writer would be waited for
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > MOST_BYTES:
            raise BadPicture(f"file of {status.st_size:,} bytes; at most {MOST_BYTES:,} are read")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MOST_BYTES + 1)
    finally:
        os.close(descriptor)


def to_jpeg(data: bytes, image_size: int, quality: int) -> tuple[bytes, int, int]:
    """Decode a whole picture and store it as JPEG.

    Args:
        data: the file's bytes, from anywhere.
        image_size: the shorter side becomes this many pixels where it is longer; nothing is enlarged.
        quality: JPEG quality of what is encoded anew.

    Returns:
        JPEG bytes, height, width. An upright RGB JPEG that is small enough comes back byte for byte.

    Raises:
        BadPicture: no picture, truncated, too large to decode safely, or of an unknown kind of colour.
    """
    with _judged():
        picture, kept = _decode(data, image_size)
        return (data, picture.height, picture.width) if kept else encode(picture, image_size, quality)


def to_picture(data: bytes, image_size: int, quality: int) -> Image.Image:
    """The picture, mode RGB, that ``to_jpeg`` stores: pixel for pixel what comes out of its JPEG bytes.

    Raises:
        BadPicture: as ``to_jpeg``.
    """
    with _judged():
        picture, kept = _decode(data, image_size)
        return picture if kept else _stored(picture, image_size, quality)


def store_picture(picture: Image.Image, image_size: int, quality: int) -> Image.Image:
    """``to_picture`` of one that is open already, of any mode.

    Raises:
        BadPicture: its pixels cannot be had, or not be stored as JPEG.
    """
    with _judged():
        rotation = _orientation(picture)
        picture = _rgb(picture)
        return _stored(picture if rotation == 1 else _upright(picture, rotation), image_size, quality)


def _stored(picture: Image.Image, image_size: int, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(picture, image_size, quality)[0]), formats=("JPEG",)).convert("RGB")


@contextmanager
def _judged() -> Iterator[None]:
    """Whatever a decoder of untrusted bytes raises is said in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large but allowed pictures, odd EXIF: judged here, not printed
            yield
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture("no picture of a known format") from None
    except Image.DecompressionBombError:
        raise BadPicture(f"more than {MOST_PIXELS_JPEG:,} pixels") from None
    except MemoryError:
        raise BadPicture("too large for the memory") from None
    except Exception as error:  # decoders of untrusted bytes raise nearly everything
        text = str(error)
        raise BadPicture(
            "truncated" if "truncated" in text.lower() else f"cannot be decoded ({type(error).__name__}: {text})"
        ) from None


def encode(picture: Image.Image, image_size: int, quality: int) -> tuple[bytes, int, int]:
    """An RGB picture, its shorter side cut down to ``image_size``, as JPEG bytes with height and width."""
    size = _fitted(picture.size, image_size)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), picture.height, picture.width


def _decode(data: bytes, image_size: int) -> tuple[Image.Image, bool]:
    """The picture, RGB, upright and small enough; and whether its bytes may be kept as they are."""
    if not data:
        raise BadPicture("empty file")
    if len(data) > MOST_BYTES:
        raise BadPicture(f"file of {len(data):,} bytes; at most {MOST_BYTES:,} are read")
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = picture.size
    most = MOST_PIXELS_JPEG if picture.format in ("JPEG", "MPO") else MOST_PIXELS
    if width * height > most:
        raise BadPicture(f"{width}x{height} pixels; at most {most:,} are decoded")
    rotation = _orientation(picture)
    fits = min(width, height) <= image_size and len(data) <= 3 * width * height + _METADATA
    if picture.format == "JPEG" and picture.mode == "RGB" and rotation == 1 and fits:
        picture.load()
        return picture, True
    target = _fitted((width, height), image_size)
    # libjpeg scales by 1/2, 1/4, 1/8 while it decodes; twice the target leaves Lanczos enough to work with
    picture.draft(picture.mode, (2 * target[0], 2 * target[1]))
    picture.load()
    picture = _rgb(picture)
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling.LANCZOS)
    return picture if rotation == 1 else _upright(picture, rotation), False


def _fitted(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    shorter = min(size)
    if shorter <= image_size:
        return size
    return tuple(image_size if side == shorter else round(side * image_size / shorter) for side in size)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF in a sound picture
        return 1
    return value if value in range(2, 9) else 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    plain = Image.frombytes(picture.mode, picture.size, picture.tobytes())  # without the metadata that the decoder kept
    plain.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(plain)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_eight_bits(picture)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture.getchannel("A"))
        return white
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a grey picture with 16-bit, 32-bit or real values; Pillow's own conversion would clip at 255."""
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max())
    if picture.mode == "F":
        white = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
    else:
        white = 65535.0 if picture.mode.startswith("I;16") or top > 255 else 255.0
    return np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8)
