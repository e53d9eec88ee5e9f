"""Plain and augmented views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.features.encoders import InputSpec
from captioner.features.forward import ImageEncoder
from captioner.features.layout import MEAN, STD
from captioner.features.preprocess import Preprocessing, draw_view, square, visible_box

SIDES = [(80, 64), (64, 90), (50, 50)]


def quarters(width: int = 80, height: int = 64) -> Image.Image:
    """Red, green, blue and white quarters, row by row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = pixels[: height // 2, width // 2 :, 1] = pixels[
        height // 2 :, : width // 2, 2
    ] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


def corners(pixels: np.ndarray) -> str:
    names = {(255, 0, 0): "r", (0, 255, 0): "g", (0, 0, 255): "b", (255, 255, 255): "w"}
    return "".join(names[tuple(int(value) for value in pixels[row, column])] for row in (2, -3) for column in (2, -3))


@pytest.mark.parametrize(("width", "height"), SIDES)
def test_squash_keeps_the_edges_and_crop_the_aspect(width: int, height: int) -> None:
    assert visible_box(width, height, "squash") == (0, 0, width, height)
    left, top, right, bottom = visible_box(width, height, "crop")
    assert right - left == bottom - top == min(width, height) and left + right == width and top + bottom == height
    wide = quarters(90, 30)
    pixels = np.asarray(wide).copy()
    pixels[:, :20] = 7  # outside the central square
    plain = {fit: square(Image.fromarray(pixels), Preprocessing(fit, 30)) for fit in ("squash", "crop")}
    assert (plain["squash"][:, :5] == 7).all()
    np.testing.assert_array_equal(plain["crop"], pixels[:, 30:60])


def test_view_0_is_plain_pillow() -> None:
    image = quarters()
    np.testing.assert_array_equal(
        square(image, Preprocessing(image_size=48)), np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR))
    )


def test_grey_images_become_rgb() -> None:
    assert square(quarters().convert("L"), Preprocessing(image_size=32)).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ({"hflip": 1, "vflip": 0}, "grwb"),
        ({"hflip": 0, "vflip": 1}, "bwrg"),
        ({"hflip": 1, "vflip": 1}, "wbgr"),
        ({"hflip": 0, "vflip": 0}, "rgbw"),
    ],
)
def test_flips_flip(flips: dict[str, float], expected: str) -> None:
    plan = Preprocessing(image_size=64, crop="none", **flips)
    for view in (1, 2, 3):
        assert corners(square(quarters(), plan, 5, view)) == expected
    assert corners(square(quarters(), plan, 5, 0)) == "rgbw"


def test_flips_come_as_often_as_asked() -> None:
    plan = Preprocessing(hflip=0.25, vflip=0.75)
    drawn = [draw_view(plan, image_id, view, 80, 64) for image_id in range(1000) for view in (1, 2)]
    assert np.mean([view.horizontal_flip for view in drawn]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([view.vertical_flip for view in drawn]) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize(("width", "height"), SIDES)
@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0])
def test_resized_crops_keep_their_area_and_stay_inside(fit: str, width: int, height: int, scale: float) -> None:
    plan = Preprocessing(fit, crop="resized", crop_scale=scale)
    left, top, right, bottom = visible_box(width, height, fit)
    shares = []
    for image_id in range(200):
        x0, y0, x1, y1 = draw_view(plan, image_id, 1, width, height).box
        assert left - 1e-9 <= x0 < x1 <= right + 1e-9 and top - 1e-9 <= y0 < y1 <= bottom + 1e-9
        shares.append((x1 - x0) * (y1 - y0) / ((right - left) * (bottom - top)))
        square(quarters(width, height), Preprocessing(fit, 32, crop="resized", crop_scale=scale), image_id, 1)
    assert scale - 1e-9 <= min(shares) and max(shares) <= 1 + 1e-9
    assert np.mean(shares) == pytest.approx((1 + scale) / 2, abs=0.05)


def test_windows() -> None:
    assert draw_view(Preprocessing(crop="centre"), 1, 1, 80, 64).box == (5, 4, 75, 60)
    assert draw_view(Preprocessing(crop="none"), 1, 1, 80, 64).box == (0, 0, 80, 64)
    boxes = {draw_view(Preprocessing(crop="random"), image_id, 1, 80, 64).box for image_id in range(50)}
    assert len(boxes) == 50
    assert all(x1 - x0 == pytest.approx(70) and y1 - y0 == pytest.approx(56) for x0, y0, x1, y1 in boxes)


def test_views_depend_on_seed_image_and_view_alone() -> None:
    plan = Preprocessing()
    assert draw_view(plan, 7, 1, 80, 64) == draw_view(Preprocessing(), 7, 1, 80, 64)
    assert (
        len(
            {draw_view(plan, image_id, view, 80, 64) for image_id in (7, 8, -7, 2**40) for view in (1, 2)}
            | {draw_view(Preprocessing(seed=2), 7, 1, 80, 64)}
        )
        == 9
    )
    # a parameter changes its own part of a view only
    assert draw_view(Preprocessing(hflip=0), 7, 1, 80, 64).box == draw_view(Preprocessing(hflip=1), 7, 1, 80, 64).box


def test_normalisation_is_imagenets() -> None:
    class Identity(torch.nn.Module):
        name, spec = "identity", InputSpec(mean=MEAN, std=STD)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(2).transpose(1, 2)

    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    expected = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    features = ImageEncoder(Identity(), torch.device("cpu"), "fp32")(pixels)  # type: ignore[arg-type]
    assert features.dtype == torch.float16
    np.testing.assert_allclose(features.float().numpy().reshape(2, 5, 5, 3), expected, atol=2e-3)
