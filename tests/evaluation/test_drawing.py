"""Attention maps by hand, and the sheet."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFont

from captioner import drawing
from captioner.drawing import Example, attention_map, draw_sheet, overlay, to_bytes, visible_part
from captioner.evaluation.sampling import sample_images
from captioner.report.heat import heat_map

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (2, 3)])
def test_the_brightest_spot_lies_in_the_cell_with_the_largest_weight(row, column):
    weights = np.full(12, 0.02)
    weights[row * 4 + column] = 1 - 0.02 * 11
    found = attention_map(weights, (3, 4), WHOLE, (80, 60))  # cells of 20 x 20 pixels
    assert found.shape == (60, 80) and found.min() >= 0
    assert found.max() == pytest.approx(1, abs=0.01)  # the cell's centre lies between pixels
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert (y // 20, x // 20) == (row, column)
    assert found[20 * row : 20 * row + 20, 20 * column : 20 * column + 20].mean() > 3 * found.mean()


def test_a_cell_without_attention_stays_bare():
    """Interpolation that overshoots, as bicubic does, would colour the opposite corner."""
    assert attention_map(np.array([1.0, 0, 0, 0]), (2, 2), WHOLE, (40, 40))[30:, 30:].max() == 0


def test_the_way_between_two_cells_is_smooth():
    """Cells of 4 pixels, centres at 2 and 6: the pixel at 2.5 is an eighth of the way, and 3/64 - 2/512 = 11/256."""
    found = attention_map(np.array([1.0, 0.0]), (1, 2), WHOLE, (8, 1))[0]
    falling = 1 - np.array([11 / 256, 81 / 256, 175 / 256, 245 / 256])  # at 1/8, 3/8, 5/8 and 7/8 of the way
    assert found == pytest.approx([1, 1, *falling, 0, 0], abs=1e-6)


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


def test_overlay_lays_the_heat_map_over_the_undimmed_image():
    image = Image.new("RGB", (40, 40), (220, 40, 40))
    shown = np.asarray(overlay(image, np.array([1.0, 0, 0, 0]), (2, 2), WHOLE)).astype(int)
    assert tuple(shown[2, 2]) == (233, 176, 35)  # 65 % of plasma's last colour, (240, 249, 33)
    assert tuple(shown[38, 38]) == (220, 40, 40)


def test_heat_map_is_plasma():
    """matplotlib's plasma(0.0), plasma(0.5) and plasma(1.0) are #0d0887, #cc4778 and #f0f921."""
    colour, opacity = heat_map(np.array([0.0, 0.175, 0.5, 1.0]))
    expected = [(0x0D, 0x08, 0x87), (0xCC, 0x47, 0x78), (0xF0, 0xF9, 0x21)]
    assert np.abs(colour[[0, 2, 3]] - expected).max() <= 1
    assert opacity[:, 0] == pytest.approx([0, 0.325, 0.65, 0.65])
    lightness = heat_map(np.linspace(0, 1, 50))[0] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()  # readable in grey, so by any colour vision


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


def test_png_keeps_every_colour():
    """A ramp of 1,024 colours: a palette would hold 256 of them."""
    ramp = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    image = Image.fromarray(np.stack([ramp // 4, ramp % 256, ramp // 16], axis=-1).astype(np.uint8))
    with Image.open(io.BytesIO(to_bytes(image))) as found:
        assert found.mode == "RGB" and (np.asarray(found) == np.asarray(image)).all()


def test_a_sheet_with_attention_has_the_legend_of_its_colours():
    strongest = (245, 251, 111)  # 65 % of (240, 249, 33) on white paper
    plain, shown = (np.asarray(draw_sheet([make(0, (50, 50), attention)], "a title")) for attention in (False, True))
    assert len(shown) == len(plain) + 28
    near = [np.abs(sheet[:86].astype(int) - strongest).max(-1).min() for sheet in (plain, shown)]
    assert near[0] > 20 and near[1] <= 1


def test_lots_depend_on_the_ids_alone():
    ids = list(range(100, 200))
    drawn = sample_images(ids, 6)
    assert drawn == sample_images(ids[::-1], 6) and len(set(drawn)) == 6 and set(drawn) <= set(ids)
    assert drawn != sample_images(ids, 6, seed=2)
    assert sorted(sample_images([5, 3], 6)) == [3, 5]


def test_text_without_spaces_breaks_between_letters():
    font = ImageFont.load_default(20)
    lines = drawing._wrap("一" * 40, font, 100)
    assert "".join(lines) == "一" * 40 and len(lines) > 3 and all(font.getlength(line) <= 100 for line in lines)
    assert drawing._wrap("a dog", font, 1000) == ["a dog"] and drawing._wrap("x" * 90, font, 100)[0].endswith("…")


def test_the_caption_is_drawn_as_written():
    """Words alone are joined with spaces."""
    example = replace(make(2, (50, 50), attention=False), words=("ab", "cd"))
    spaced, joined = (to_bytes(draw_sheet([replace(example, text=text)], "")) for text in ("ab cd", "abcd"))
    assert to_bytes(draw_sheet([example], "")) == spaced != joined


def test_letters_that_the_font_lacks_are_of_another_font(monkeypatch, capsys):
    """Pillow's font has no é and no Hebrew, DejaVu Sans has; no font has U+10FFFD, which is a box with a warning."""
    try:
        ImageFont.truetype("DejaVuSans.ttf", 20)
    except OSError:
        pytest.skip("DejaVu Sans is not installed")
    monkeypatch.setattr(drawing, "_SYSTEM_FONTS", ("not-there.ttf", "DejaVuSans.ttf"))
    drawing._warn_of_boxes.cache_clear()
    assert drawing._font(20, "a dog…").getname() == ImageFont.load_default(20).getname()
    assert drawing._font(20, "é, כלב רץ").getname()[0] == "DejaVu Sans" and capsys.readouterr().err == ""
    for _ in range(2):
        drawing._font(20, "a \U0010fffd")
    assert capsys.readouterr().err.count("warning: no font on this machine has some letters") == 1
