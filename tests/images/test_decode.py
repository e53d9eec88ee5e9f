"""Decoding of all kinds of valid and invalid images; expected pixels follow from how the image was made."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from captioner.images import decode
from captioner.images.decode import BadImage, to_jpeg
from tests.images.making import encoded, jpeg, make_image


def decoded(data: bytes, image_size: int = 256) -> Image.Image:
    """The decoded output of to_jpeg, checked for size and format."""
    stored, height, width = to_jpeg(data, image_size, 95)
    image = Image.open(io.BytesIO(stored))
    assert image.format == "JPEG" and image.mode == "RGB" and image.size == (width, height)
    image.load()
    return image


def near(image: Image.Image, colour: tuple[int, int, int], at: tuple[int, int] = (5, 5), by: int = 6) -> bool:
    return all(abs(a - b) <= by for a, b in zip(image.getpixel(at), colour))


def test_small_upright_jpeg_keeps_its_bytes():
    for data in (jpeg(256, 300), jpeg(100, 900), encoded(make_image(50, 60), progressive=True)):
        assert to_jpeg(data, 256, 90)[0] == data


def test_bulk_behind_a_small_jpeg_is_not_stored():
    assert len(to_jpeg(jpeg(50, 60) + bytes(100_000), 256, 90)[0]) < 9000


@pytest.mark.parametrize(
    "size, expected",
    [
        ((640, 480), (341, 256)),
        ((480, 640), (256, 341)),
        ((300, 300), (256, 256)),
        ((257, 1000), (256, 996)),
        ((4000, 3000), (341, 256)),
    ],
)
def test_shorter_side_and_aspect(size, expected):
    assert decoded(jpeg(*size)).size == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"])
def test_formats(kind):
    assert near(decoded(encoded(Image.new("RGB", (40, 30), (200, 100, 50)), kind)), (200, 100, 50))


@pytest.fixture(params=["AVIF", "HEIF"])
def phone_format(request):
    """Formats of phones, where the libraries here read and write them."""
    if not {"AVIF": decode.reads_avif, "HEIF": decode.reads_heic}[request.param]():
        pytest.skip(f"nothing here reads {request.param}")
    if request.param not in Image.SAVE:
        pytest.skip(f"nothing here writes {request.param}")
    return request.param


def test_avif_and_heic(phone_format):
    assert near(decoded(encoded(Image.new("RGB", (64, 48), (200, 100, 50)), phone_format)), (200, 100, 50))
    assert decoded(encoded(make_image(640, 480), phone_format)).size == (341, 256)


def test_turned_and_transparent_avif_and_heic(phone_format):
    image = Image.new("RGB", (60, 40), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 20, 40))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the left side is shown at the top
    image.info["exif"] = exif.tobytes()  # where pillow-heif looks: what turns a HEIC is not its EXIF, but made from it
    options = {"exif": exif} if phone_format == "AVIF" else {}
    shown = decoded(encoded(image, phone_format, quality=95, **options))
    assert shown.size == (40, 60)
    assert near(shown, (255, 0, 0), (20, 5), by=12) and near(shown, (0, 0, 255), (20, 55), by=12)
    assert near(decoded(encoded(Image.new("RGBA", (64, 48), (200, 0, 0, 0)), phone_format)), (255, 255, 255))


def test_damaged_avif_and_heic_raise_nothing_else(phone_format):
    data, rng = encoded(make_image(60, 50), phone_format), np.random.default_rng(1)
    for length in (30, len(data) // 2, len(data) - 1):
        with pytest.raises(BadImage, match=f"{phone_format}|truncated|decoded"):
            to_jpeg(data[:length], 32, 90)
    for _ in range(100):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 4):
            damaged[position] = rng.integers(0, 256)
        with contextlib.suppress(BadImage):
            to_jpeg(bytes(damaged), 32, 90)


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    """The first box of a file of these brands (ISO/IEC 14496-12, section 4.3), and other bytes."""
    return (16 + 4 * len(compatible)).to_bytes(4, "big") + b"ftyp" + major + bytes(4) + b"".join(compatible) + bytes(99)


@pytest.mark.parametrize(
    "name, data, remedy",
    [
        (
            "reads_heic",
            ftyp(b"heic", b"mif1", b"heic"),
            "HEIC, which .* pip install pillow-heif, or convert it to JPEG",
        ),
        ("reads_heic", ftyp(b"mif1", b"heic"), "HEIC, which .* pip install pillow-heif"),
        ("reads_avif", ftyp(b"avif", b"mif1"), "AVIF, which .* pip install --upgrade pillow, or convert it to JPEG"),
        ("reads_avif", ftyp(b"mif1", b"avif"), "AVIF, which .* pip install --upgrade pillow"),
        ("reads_avif", ftyp(b"mp42", b"isom"), "not an image of a known format"),
    ],
)
def test_avif_and_heic_that_cannot_be_read_are_named(monkeypatch, name, data, remedy):
    monkeypatch.setattr(decode, name, lambda: False)
    with pytest.raises(BadImage, match=remedy):
        to_jpeg(data, 256, 90)


def test_heic_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert decode.reads_heic.__wrapped__() is False


def test_animated_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    assert near(decoded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])), (255, 0, 0))


def test_greyscale():
    assert near(decoded(encoded(Image.new("L", (40, 30), 77))), (77, 77, 77))
    assert near(decoded(encoded(Image.new("1", (40, 30), 1), "PNG")), (255, 255, 255))


def test_palette():
    image = Image.new("P", (40, 30), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert near(decoded(encoded(image, "PNG")), (10, 200, 30))


def test_cmyk():
    assert near(decoded(encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0)))), (255, 0, 0), by=10)


@pytest.mark.parametrize("value, grey", [(65535, 255), (32768, 128), (257, 1), (0, 0)])
def test_16_bit_grey_is_scaled_not_clipped(value, grey):
    image = Image.fromarray(np.full((30, 40), value, dtype=np.uint16))
    assert near(decoded(encoded(image, "PNG")), (grey,) * 3, by=2)
    assert near(decoded(encoded(image, "TIFF")), (grey,) * 3, by=2)


def png(width: int, height: int, depth: int, colour: int, row: bytes) -> bytes:
    """A PNG of equal rows, written by hand (PNG specification, section 11): Pillow writes no 16-bit RGB, and no huge
    one quickly."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress((b"\0" + row) * height, 1)) + chunk(b"IEND", b"")


def test_16_bit_colour():
    assert near(decoded(png(8, 8, 16, 2, struct.pack(">3H", 65535, 32768, 0) * 8)), (255, 128, 0))


def test_float_tiff():
    assert near(
        decoded(encoded(Image.fromarray(np.full((30, 40), 0.5, dtype=np.float32)), "TIFF")), (128, 128, 128), by=2
    )
    assert near(decoded(encoded(Image.fromarray(np.full((30, 40), np.nan, dtype=np.float32)), "TIFF")), (0, 0, 0))


@pytest.mark.parametrize("alpha, colour", [(0, (255, 255, 255)), (255, (200, 0, 0)), (51, (244, 204, 204))])
def test_alpha_is_composited_on_white(alpha, colour):
    """0.2 * (200, 0, 0) + 0.8 * 255 = (244, 204, 204)."""
    assert near(decoded(encoded(Image.new("RGBA", (40, 30), (200, 0, 0, alpha)), "PNG")), colour)


def test_grey_alpha_and_transparent_palette():
    assert near(decoded(encoded(Image.new("LA", (40, 30), (9, 0)), "PNG")), (255, 255, 255))
    image = Image.new("P", (40, 30), 0)
    image.putpalette([255, 0, 0])
    assert near(decoded(encoded(image, "PNG", transparency=0)), (255, 255, 255))
    assert near(decoded(encoded(Image.new("RGB", (40, 30), (1, 2, 3)), "PNG", transparency=(1, 2, 3))), (255, 255, 255))


# where the stored image's upper left corner goes when it is shown, by EXIF orientation (TIFF 6.0, tag 274)
CORNERS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("scale", [1, 16])
def test_exif_orientation(orientation, scale):
    image = Image.new("RGB", (60 * scale, 40 * scale), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 20 * scale, 20 * scale))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    shown = decoded(encoded(image, exif=exif, quality=95))
    width, height = shown.size
    assert (width < height) == (orientation >= 5)
    right, low = CORNERS[orientation]
    assert near(shown, (255, 0, 0), (int(width * (0.1 + 0.8 * right)), int(height * (0.1 + 0.8 * low))), by=12)
    assert near(shown, (0, 0, 255), (int(width * (0.9 - 0.8 * right)), int(height * (0.9 - 0.8 * low))), by=12)
    assert shown.getexif().get(ExifTags.Base.Orientation, 1) == 1


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_unknown_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(make_image(), exif=exif)
    assert to_jpeg(data, 256, 90)[0] == data


def test_image_of_a_camera_with_a_second_one_inside():
    """MPO: a JPEG with a second view; the first is used."""
    data = encoded(
        Image.new("RGB", (40, 30), (200, 0, 0)),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (40, 30), (0, 0, 200))],
    )
    assert near(decoded(data), (200, 0, 0))


def test_one_pixel():
    assert decoded(encoded(Image.new("RGB", (1, 1), (9, 9, 9)))).size == (1, 1)
    assert decoded(encoded(Image.new("RGBA", (1, 1)), "PNG")).size == (1, 1)


def patched_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose frame header states another size."""
    data = jpeg(64, 64)
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def test_huge_images_are_refused_before_they_are_decoded():
    for data in (png(20_000, 20_000, 1, 0, bytes(2500)), patched_jpeg(20_000, 20_000), patched_jpeg(65_500, 65_500)):
        with pytest.raises(BadImage, match="pixels"):
            to_jpeg(data, 256, 90)


def test_png_larger_than_a_decoded_copy_may_be():
    """90,000,000 pixels: allowed as JPEG (decoded at reduced size), refused for other formats."""
    data = png(10_000, 9_000, 1, 0, bytes(1250))
    with pytest.raises(BadImage, match="10000x9000 pixels"):
        to_jpeg(data, 256, 90)


def test_large_jpeg_is_scaled():
    assert decoded(encoded(Image.new("RGB", (9000, 6000), (0, 128, 0)))).size == (384, 256)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [(100, 80), (800, 600)])
def test_truncated_jpeg(share, size):
    data = encoded(Image.effect_noise(size, 80).convert("RGB"))
    with pytest.raises(BadImage):
        to_jpeg(data[: int(len(data) * share)], 256, 90)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_others(kind):
    data = encoded(Image.effect_noise((90, 80), 80).convert("RGB"), kind)
    with pytest.raises(BadImage):
        to_jpeg(data[: len(data) // 2], 256, 90)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404</html>",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0" + b"\0" * 500,
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"\0" * 1000,
    ],
)
def test_fake_images(data):
    with pytest.raises(BadImage) as caught:
        to_jpeg(data, 256, 90)
    assert "\n" not in caught.value.reason and "0x" not in caught.value.reason and caught.value.reason


def test_formats_of_documents_are_not_read():
    with pytest.raises(BadImage, match="known format"):
        to_jpeg(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 256, 90)


def test_damaged_images_raise_nothing_else():
    """A thousand randomly damaged files: each gives an image or BadImage."""
    rng = np.random.default_rng(1)
    originals = [encoded(make_image(60, 50), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP")]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    originals.append(encoded(make_image(60, 50), exif=exif))
    for number in range(1000):
        data = bytearray(originals[number % len(originals)])
        for position in rng.integers(0, min(len(data), 700), rng.integers(1, 8)):
            data[position] = rng.integers(0, 256)
        with contextlib.suppress(BadImage):
            to_jpeg(bytes(data), 32, 90)


def test_quality():
    data = jpeg(600, 500)
    assert len(to_jpeg(data, 256, 30)[0]) < len(to_jpeg(data, 256, 90)[0])
