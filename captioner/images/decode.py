"""Untrusted image bytes to JPEG bytes of a bounded size.

Whatever an image is (palette, alpha, CMYK, 16 bits, rotated by EXIF), what comes out is an RGB JPEG whose shorter side
is at most ``image_size``. Colour profiles are ignored; of an animation the first frame is taken; 1x1 is an image too.
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


class BadImage(Exception):
    """An image that is left out; ``reason`` is one line without a path or an address, for skipped.csv."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(re.sub(r"<[^>]*at 0x[0-9a-fA-F]+>", "", reason).split())
        super().__init__(self.reason)


def read_regular(path: str) -> bytes | None:
    """The bytes of a file, of one that grows meanwhile at most one more than ``MOST_BYTES``; None of a folder, pipe or
    device.

    Raises:
        BadImage: the file is too large.
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
            raise BadImage(f"file of {status.st_size:,} bytes; at most {MOST_BYTES:,} are read")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MOST_BYTES + 1)
    finally:
        os.close(descriptor)


def to_jpeg(data: bytes, image_size: int, quality: int) -> tuple[bytes, int, int]:
    """Decode a whole image and store it as JPEG.

    Args:
        data: the file's bytes, from anywhere.
        image_size: the shorter side becomes this many pixels where it is longer; nothing is enlarged.
        quality: JPEG quality of what is encoded anew.

    Returns:
        JPEG bytes, height, width. An upright RGB JPEG that is small enough comes back byte for byte.

    Raises:
        BadImage: no image, truncated, too large to decode safely, or of an unknown kind of colour.
    """
    with _judged():
        image, kept = _decode(data, image_size)
        return (data, image.height, image.width) if kept else encode(image, image_size, quality)


def to_image(data: bytes, image_size: int, quality: int) -> Image.Image:
    """The image, mode RGB, that ``to_jpeg`` stores: pixel for pixel what comes out of its JPEG bytes.

    Raises:
        BadImage: as ``to_jpeg``.
    """
    with _judged():
        image, kept = _decode(data, image_size)
        return image if kept else _stored(image, image_size, quality)


def store_image(image: Image.Image, image_size: int, quality: int) -> Image.Image:
    """``to_image`` of one that is open already, of any mode.

    Raises:
        BadImage: its pixels cannot be had, or not be stored as JPEG.
    """
    with _judged():
        rotation = _orientation(image)
        image = _rgb(image)
        return _stored(image if rotation == 1 else _upright(image, rotation), image_size, quality)


def _stored(image: Image.Image, image_size: int, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, image_size, quality)[0]), formats=("JPEG",)).convert("RGB")


@contextmanager
def _judged() -> Iterator[None]:
    """Whatever a decoder of untrusted bytes raises is said in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large but allowed images, odd EXIF: judged here, not printed
            yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("no image of a known format") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MOST_PIXELS_JPEG:,} pixels") from None
    except MemoryError:
        raise BadImage("too large for the memory") from None
    except Exception as error:  # decoders of untrusted bytes raise nearly everything
        text = str(error)
        raise BadImage(
            "truncated" if "truncated" in text.lower() else f"cannot be decoded ({type(error).__name__}: {text})"
        ) from None


def encode(image: Image.Image, image_size: int, quality: int) -> tuple[bytes, int, int]:
    """An RGB image, its shorter side cut down to ``image_size``, as JPEG bytes with height and width."""
    size = _fitted(image.size, image_size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), image.height, image.width


def _decode(data: bytes, image_size: int) -> tuple[Image.Image, bool]:
    """The image, RGB, upright and small enough; and whether its bytes may be kept as they are."""
    if not data:
        raise BadImage("empty file")
    if len(data) > MOST_BYTES:
        raise BadImage(f"file of {len(data):,} bytes; at most {MOST_BYTES:,} are read")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    most = MOST_PIXELS_JPEG if image.format in ("JPEG", "MPO") else MOST_PIXELS
    if width * height > most:
        raise BadImage(f"{width}x{height} pixels; at most {most:,} are decoded")
    rotation = _orientation(image)
    fits = min(width, height) <= image_size and len(data) <= 3 * width * height + _METADATA
    if image.format == "JPEG" and image.mode == "RGB" and rotation == 1 and fits:
        image.load()
        return image, True
    target = _fitted((width, height), image_size)
    # libjpeg scales by 1/2, 1/4, 1/8 while it decodes; twice the target leaves Lanczos enough to work with
    image.draft(image.mode, (2 * target[0], 2 * target[1]))
    image.load()
    image = _rgb(image)
    if image.size != target:
        image = image.resize(target, Image.Resampling.LANCZOS)
    return image if rotation == 1 else _upright(image, rotation), False


def _fitted(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    shorter = min(size)
    if shorter <= image_size:
        return size
    return tuple(image_size if side == shorter else round(side * image_size / shorter) for side in size)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF in a sound image
        return 1
    return value if value in range(2, 9) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    plain = Image.frombytes(image.mode, image.size, image.tobytes())  # without the metadata that the decoder kept
    plain.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(plain)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a grey image with 16-bit, 32-bit or real values; Pillow's own conversion would clip at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max())
    if image.mode == "F":
        white = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
    else:
        white = 65535.0 if image.mode.startswith("I;16") or top > 255 else 255.0
    return np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8)
