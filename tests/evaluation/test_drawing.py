"""Attention maps by hand, and the sheet."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from captioner.drawing import Example, attention_map, draw_sheet, overlay, to_bytes, visible_part
from captioner.evaluation.sampling import sample_images

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (2, 3)])
def test_the_brightest_spot_lies_in_the_cell_with_the_largest_weight(row, column):
    weights = np.full(12, 0.02)
    weights[row * 4 + column] = 1 - 0.02 * 11
    found = attention_map(weights, (3, 4), WHOLE, (80, 60))  # cells of 20 x 20 pixels
    assert found.shape == (60, 80) and found.min() >= 0 and found.max() == pytest.approx(1, abs=0.02)
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert (y // 20, x // 20) == (row, column)
    assert found[20 * row : 20 * row + 20, 20 * column : 20 * column + 20].mean() > 3 * found.mean()


def test_even_weights_show_nothing():
    assert attention_map(np.full(49, 1 / 49), (7, 7), WHOLE, (30, 30)).max() == 0


def test_a_cropped_image_has_its_map_in_the_central_square():
    """A 100x60 image, cropped: the encoder saw columns 20 to 80."""
    box = visible_part((100, 60), {"fit": "crop"})
    assert box == pytest.approx((0.2, 0.0, 0.8, 1.0))
    weights = np.array([0.7, 0.1, 0.1, 0.1])
    found = attention_map(weights, (2, 2), box, (100, 60))
    assert found[:, :20].max() == 0 and found[:, 80:].max() == 0
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert 20 <= x < 50 and y < 30
    assert visible_part((60, 100), {"fit": "crop"}) == pytest.approx((0.0, 0.2, 1.0, 0.8))
    assert visible_part((100, 60), {"fit": "squash"}) == WHOLE


def test_overlay_is_in_colour_where_attention_is():
    image = Image.new("RGB", (40, 40), (220, 40, 40))
    shown = np.asarray(overlay(image, np.array([1.0, 0, 0, 0]), (2, 2), WHOLE)).astype(int)
    assert tuple(shown[2, 2]) == (220, 40, 40)
    assert np.ptp(shown[38, 38]) < 10 and shown[38, 38, 0] < 100


def make(words: int, size: tuple[int, int], attention: bool = True) -> Example:
    weights = np.random.default_rng(0).dirichlet(np.ones(6), size=words) if attention else None
    names = tuple(f"word{number}" for number in range(words))
    image = Image.new("RGB", size, (10, 200, 90))
    return Example(image, names, weights, (2, 3), WHOLE, "a reference " * 20, "a-very-long-file-name-" * 5 + ".jpg")


def test_sheet_of_all_shapes():
    examples = [
        make(0, (50, 50)),
        make(1, (300, 100)),
        make(30, (100, 300)),
        make(12, (1, 1)),
        make(5, (640, 480), attention=False),
    ]
    sheet = draw_sheet(examples, "a title")
    data = to_bytes(sheet)
    assert data == to_bytes(draw_sheet(examples, "a title"))
    with Image.open(io.BytesIO(data)) as found:
        assert found.size == sheet.size and found.width == 1200
    assert draw_sheet([], "nothing").height < 100


def test_lots_depend_on_the_ids_alone():
    ids = list(range(100, 200))
    drawn = sample_images(ids, 6)
    assert drawn == sample_images(ids[::-1], 6) and len(set(drawn)) == 6 and set(drawn) <= set(ids)
    assert drawn != sample_images(ids, 6, seed=2)
    assert sorted(sample_images([5, 3], 6)) == [3, 5]
