"""Converts untrusted image bytes to JPEG bytes of a bounded size.

Any image (palette, alpha, CMYK, 16 bits, rotated by EXIF) becomes an upright RGB JPEG whose shorter side is at most
``image_size``. Colour profiles are ignored; of an animation the first frame is used; images down to 1x1 are accepted.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

# Importing TiffImagePlugin and WebPImagePlugin registers their formats: Pillow loads only the most common by itself.
from PIL import (
    ExifTags,
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
    features,
)

# Formats of the web and of cameras; every further format would expose another decoder to untrusted bytes. AVIF and HEIC
# are added for the files that say that they are.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
MAX_BYTES = 256 << 20
# A JPEG is decoded at reduced size (draft mode); other formats need several bytes per pixel at full size.
MAX_PIXELS_JPEG = 178_000_000
MAX_PIXELS = 89_000_000
_METADATA = 1 << 16  # bytes; a JPEG larger than its raw pixels plus this has large metadata and is re-encoded


class BadImage(Exception):
    """An image that is skipped; ``reason`` is one line for skipped.csv, without a path or memory address."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(re.sub(r"<[^>]*at 0x[0-9a-fA-F]+>", "", reason).split())
        super().__init__(self.reason)


def read_regular(path: str) -> bytes | None:
    """The bytes of a regular file, at most ``MAX_BYTES`` + 1 if it grows while being read; None for a folder, pipe or
    device.

    Raises:
        BadImage: the file is too large.
        OSError: no such file, or it cannot be read.
        ValueError: not a valid file name.
    """
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # without O_NONBLOCK, opening a pipe waits for a writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > MAX_BYTES:
            raise BadImage(f"file of {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)


@cache
def reads_avif() -> bool:
    """Whether this Pillow reads AVIF; 11.3 and later do, unless they were built without it."""
    if not features.check("avif"):
        return False
    from PIL import AvifImagePlugin  # noqa: F401  # registers the format

    return True


@cache
def reads_heic() -> bool:
    """Whether HEIC is read, by the optional package pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        return False
    # the image alone, and not its thumbnail, which draft mode would take; several processes decode already
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def _formats(data: bytes) -> tuple[str, ...]:
    """Pillow's names of the formats that ``data`` may have.

    AVIF and HEIC begin with a box ``ftyp`` of brands (ISO/IEC 14496-12, section 4.3; 23008-12, annex B).

    Raises:
        BadImage: AVIF or HEIC, and nothing is installed that reads it.
    """
    if data[4:8] != b"ftyp":
        return FORMATS
    box = data[: min(int.from_bytes(data[:4], "big"), 1024)]
    brands = {box[at : at + 4] for at in (8, *range(16, len(box), 4))}
    if brands & {b"avif", b"avis"}:
        if not reads_avif():
            raise BadImage("AVIF, which this Pillow does not read: pip install --upgrade pillow, or convert it to JPEG")
        return ("AVIF",)
    if brands & _HEIC_BRANDS:
        if not reads_heic():
            raise BadImage("HEIC, which needs another package: pip install pillow-heif, or convert it to JPEG")
        return ("HEIF",)
    return FORMATS


def to_jpeg(data: bytes, image_size: int, quality: int) -> tuple[bytes, int, int]:
    """Decode an image completely and encode it as JPEG.

    Args:
        data: the file's bytes, untrusted.
        image_size: maximum shorter side in pixels; larger images are reduced, smaller ones never enlarged.
        quality: JPEG quality of re-encoded images.

    Returns:
        JPEG bytes, height, width. An upright RGB JPEG that is small enough is returned unchanged.

    Raises:
        BadImage: not an image, truncated, too large to decode safely, or of an unsupported colour mode.
    """
    with _decoder_errors():
        image, kept = _decode(data, image_size)
        return (data, image.height, image.width) if kept else encode(image, image_size, quality)


def to_image(data: bytes, image_size: int, quality: int) -> Image.Image:
    """The RGB image that ``to_jpeg`` stores, with exactly the pixels that its JPEG bytes decode to.

    Raises:
        BadImage: as ``to_jpeg``.
    """
    with _decoder_errors():
        image, kept = _decode(data, image_size)
        return image if kept else _stored(image, image_size, quality)


def store_image(image: Image.Image, image_size: int, quality: int) -> Image.Image:
    """``to_image`` for an opened image of any mode.

    Raises:
        BadImage: its pixels cannot be read, or cannot be stored as JPEG.
    """
    with _decoder_errors():
        rotation = _orientation(image)
        image = _rgb(image)
        return _stored(image if rotation == 1 else _apply_orientation(image, rotation), image_size, quality)


def _stored(image: Image.Image, image_size: int, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, image_size, quality)[0]), formats=("JPEG",)).convert("RGB")


@contextmanager
def _decoder_errors() -> Iterator[None]:
    """Turns any exception of an image decoder into BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large but allowed images and odd EXIF are no reason to print
            yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS_JPEG:,} pixels") from None
    except MemoryError:
        raise BadImage("too large for memory") from None
    except Exception as error:  # decoders of untrusted bytes raise almost anything
        text = str(error)
        raise BadImage(
            "truncated" if "truncated" in text.lower() else f"cannot be decoded ({type(error).__name__}: {text})"
        ) from None


def encode(image: Image.Image, image_size: int, quality: int) -> tuple[bytes, int, int]:
    """JPEG bytes, height and width of an RGB image, reduced to a shorter side of at most ``image_size``."""
    size = _target_size(image.size, image_size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), image.height, image.width


def _decode(data: bytes, image_size: int) -> tuple[Image.Image, bool]:
    """The upright RGB image, reduced to ``image_size``; and whether its bytes may be kept unchanged."""
    if not data:
        raise BadImage("empty file")
    if len(data) > MAX_BYTES:
        raise BadImage(f"file of {len(data):,} bytes; at most {MAX_BYTES:,} are read")
    image = _open(data)
    width, height = image.size
    limit = MAX_PIXELS_JPEG if image.format in ("JPEG", "MPO") else MAX_PIXELS
    if width * height > limit:
        raise BadImage(f"{width}x{height} pixels; at most {limit:,} are decoded")
    rotation = _orientation(image)
    fits = min(width, height) <= image_size and len(data) <= 3 * width * height + _METADATA
    if image.format == "JPEG" and image.mode == "RGB" and rotation == 1 and fits:
        image.load()
        return image, True
    target = _target_size((width, height), image_size)
    # libjpeg can scale by 1/2, 1/4, 1/8 while decoding; twice the target size is enough input for Lanczos
    image.draft(image.mode, (2 * target[0], 2 * target[1]))
    image.load()
    image = _rgb(image)
    if image.size != target:
        image = image.resize(target, Image.Resampling.LANCZOS)
    return image if rotation == 1 else _apply_orientation(image, rotation), False


def _open(data: bytes) -> Image.Image:
    formats = _formats(data)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        if formats is FORMATS:
            raise
        raise BadImage(f"begins like {formats[0]} and is damaged, or of a kind that is not read") from None


def _target_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    shorter = min(size)
    if shorter <= image_size:
        return size
    width, height = (image_size if side == shorter else round(side * image_size / shorter) for side in size)
    return width, height


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF in a valid image
        return 1
    return value if value in range(2, 9) else 1


def _apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    plain = Image.frombytes(image.mode, image.size, image.tobytes())  # drops metadata
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
    """(H, W) uint8 of a grey image with 16-bit, 32-bit or float values; Pillow's own conversion would clip at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max())
    if image.mode == "F":
        white = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
    else:
        white = 65535.0 if image.mode.startswith("I;16") or top > 255 else 255.0
    return np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8)
