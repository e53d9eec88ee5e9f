"""Images with their captions, and where the decoder looked for each word (Xu et al. 2015, figure 3)."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captioner.features.preprocess import visible_box
from captioner.report.heat import heat_map
from captioner.vocabulary.tokenizers import unspaced_letters

_WIDTH, _MARGIN, _GAP = 1200, 28, 8
_IMAGE = 248  # longest side of an image
_PANEL = 115  # longest side of a word's panel; seven stand in a row
_LEGEND = (160, 14)  # size of the heat map's scale
_INK, _GREY, _PAPER, _RULE = (24, 26, 31), (112, 117, 128), (255, 255, 255), (226, 229, 234)
# For letters that Pillow's own font lacks: of Linux, macOS and Windows, by what they cover
_SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansThai-Regular.ttf",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "leelawui.ttf",
    "DejaVuSans.ttf",  # accents, Greek, Cyrillic, Hebrew, Arabic
    "arial.ttf",
)


@dataclass(frozen=True)
class Example:
    """One image of a sheet.

    Attributes:
        image: mode RGB, any size.
        words: the words of the generated caption.
        attention: (T, P) weights, a row a word and the grid row by row; None: no panels are drawn.
        grid: (rows, columns), rows * columns = P.
        box: (left, top, right, bottom), the part of the image that the grid covers, as shares of its width and
            height.
        reference: one of the image's own captions; None where it has none.
        name: the image's file name.
        text: the generated caption as it is written; None: its words with spaces.
    """

    image: Image.Image
    words: tuple[str, ...]
    attention: np.ndarray | None
    grid: tuple[int, int]
    box: tuple[float, float, float, float]
    reference: str | None
    name: str
    text: str | None = None


def visible_part(size: tuple[int, int], preprocessing: dict[str, Any]) -> tuple[float, float, float, float]:
    """The part of an image that the encoder saw: all of it when squashed, else the centred square.

    Args:
        size: (width, height) in pixels.
        preprocessing: the features file's; its ``fit`` is squash or crop.

    Returns:
        (left, top, right, bottom) as shares of width and height.
    """
    width, height = size
    left, top, right, bottom = visible_box(width, height, preprocessing["fit"], preprocessing.get("crop_pct", 1.0))
    return left / width, top / height, right / width, bottom / height


def attention_weights(weights: np.ndarray) -> np.ndarray:
    """Attention of one word as it is shown, cell by cell.

    Args:
        weights: (P,) of the grid's cells.

    Returns:
        (P,) float32 in 0..1: 1 at the largest weight, 0 at an even share or less.
    """
    cells = np.asarray(weights, dtype=np.float32)
    even, most = 1.0 / cells.size, float(cells.max())
    return np.clip((cells - even) / max(most - even, 1e-6), 0.0, 1.0) if most > even * 1.001 else np.zeros_like(cells)


def attention_map(
    weights: np.ndarray, grid: tuple[int, int], box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """Attention of one word over the pixels of its image.

    Args:
        weights: (P,) of the grid's cells, row by row.
        grid: (rows, columns).
        box: the part of the image that the grid covers, as shares.
        size: (width, height) in pixels.

    Returns:
        (height, width) float32 in 0..1, smoothed between the cells, 1 at the largest weight, 0 at an even share or less
        and outside the box.
    """
    width, height = size
    cells = attention_weights(weights).reshape(grid)
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (width, height, width, height), strict=True)
    )
    rows, columns = _between(grid[0], max(1, bottom - top)), _between(grid[1], max(1, right - left))
    whole = np.zeros((height, width), dtype=np.float32)
    whole[top : top + len(rows), left : left + len(columns)] = rows @ cells @ columns.T
    return whole


def _between(cells: int, pixels: int) -> np.ndarray:
    """(pixels, cells) float32: how much of each cell a pixel shows, by its way between the centres of two cells.

    The way is smoothed (3w² - 2w³): linear interpolation draws diamonds, and bicubic overshoots, which colours cells
    without attention. The page's script does the same.
    """
    at = np.clip((np.arange(pixels) + 0.5) / pixels * cells - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(int), max(cells - 2, 0))
    way = at - low
    way = way * way * (3 - 2 * way)
    shares = np.zeros((pixels, cells), dtype=np.float32)
    shares[np.arange(pixels), low] = 1 - way
    shares[np.arange(pixels), np.minimum(low + 1, cells - 1)] += way
    return shares


def overlay(
    image: Image.Image, weights: np.ndarray, grid: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    """The image under a heat map of the attention (``captioner.report.heat``); untouched where there is none."""
    return _blend(image, attention_map(weights, grid, box, image.size))


def _blend(image: Image.Image, strength: np.ndarray) -> Image.Image:
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    colour, opacity = heat_map(strength)
    return Image.fromarray((pixels + (colour - pixels) * opacity).round().astype(np.uint8))


def attention_or_none(weights: np.ndarray | None) -> np.ndarray | None:
    """The attention (T, P), or None where it is everywhere alike, as in a decoder without attention: there is nothing
    to draw then."""
    return None if weights is None or (weights.size and float(weights.max() - weights.min()) < 1e-6) else weights


def draw_sheet(examples: list[Example], title: str) -> Image.Image:
    """One sheet: of each image its caption, a reference, the image and a panel a word; and what the colours mean. Width
    1,200 pixels, any height."""
    blocks = [_draw_example(example) for example in examples]
    legend = any(example.attention is not None for example in examples)
    begin = _MARGIN + (58 if legend else 30)
    sheet = Image.new("RGB", (_WIDTH, begin + sum(block.height + 2 * _MARGIN for block in blocks)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 8), title, font=_font(16), fill=_GREY)
    if legend:
        _draw_legend(sheet, (_MARGIN, _MARGIN + 22))
    top = begin
    for block in blocks:
        pen.line([(_MARGIN, top), (_WIDTH - _MARGIN, top)], fill=_RULE, width=1)
        sheet.paste(block, (_MARGIN, top + _MARGIN - 8))
        top += block.height + 2 * _MARGIN
    return sheet


def _draw_legend(sheet: Image.Image, corner: tuple[int, int]) -> None:
    """The heat map's scale between its two ends in words."""
    pen, font, (x, y) = ImageDraw.Draw(sheet), _font(14), corner
    low, high = "attention of a word: an even share or less", "its largest"
    pen.text((x, y), low, font=font, fill=_GREY)
    left = x + round(font.getlength(low)) + 10
    scale = _blend(Image.new("RGB", _LEGEND, _PAPER), np.tile(np.linspace(0, 1, _LEGEND[0]), (_LEGEND[1], 1)))
    sheet.paste(scale, (left, y + 2))
    pen.rectangle((left - 1, y + 1, left + _LEGEND[0], y + 2 + _LEGEND[1]), outline=_RULE)
    pen.text((left + _LEGEND[0] + 10, y), high, font=font, fill=_GREY)


def to_bytes(image: Image.Image) -> bytes:
    """PNG in full colour; the same bytes for the same image."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _draw_example(example: Example) -> Image.Image:
    width = _WIDTH - 2 * _MARGIN
    image = fit(example.image, _IMAGE)
    panels = []
    if example.attention is not None:
        small = fit(example.image, _PANEL)
        panels = [overlay(small, weights, example.grid, example.box) for weights in example.attention]
    left = _IMAGE + 24
    columns = (width - left + _GAP) // (_PANEL + _GAP)
    lines = -(-len(panels) // columns)
    line_height = (panels[0].height if panels else 0) + 24
    said = (example.text if example.text is not None else " ".join(example.words)) or "(no words)"
    caption_font, reference_font = _font(22, said), _font(15, example.reference or "")
    caption = _wrap(said, caption_font, width - left)
    reference = (
        _wrap(f"reference: {example.reference}", reference_font, width - left) if example.reference is not None else []
    )
    text_height = 29 * len(caption) + 21 * len(reference) + 12
    block = Image.new("RGB", (width, max(image.height + 22, text_height + lines * line_height)), _PAPER)
    pen = ImageDraw.Draw(block)
    block.paste(image, (0, 0))
    name_font = _font(13, example.name)
    pen.text((0, image.height + 4), _clip(example.name, name_font, _IMAGE), font=name_font, fill=_GREY)
    y = -4
    for text in caption:
        pen.text((left, y), text, font=caption_font, fill=_INK)
        y += 29
    for text in reference:
        pen.text((left, y), text, font=reference_font, fill=_GREY)
        y += 21
    y += 14
    for number, (word, panel) in enumerate(zip(example.words, panels, strict=False)):
        x, line = left + (number % columns) * (_PANEL + _GAP), y + (number // columns) * line_height
        block.paste(panel, (x, line))
        font = _font(14, word)
        pen.text((x, line + panel.height + 2), _clip(word, font, _PANEL), font=font, fill=_INK)
    return block


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side ``side`` pixels, aspect kept."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _font(size: int, text: str = "") -> Any:
    """The font that comes with Pillow, with the same letters on every machine; where it lacks letters of ``text``, the
    system's font that lacks fewest. Letters that none has are drawn as boxes, with one warning."""
    fonts = [ImageFont.load_default(size)]
    lacking = _lacking(fonts[0], text)
    if lacking:
        for name in _SYSTEM_FONTS:
            with contextlib.suppress(OSError):  # not installed
                fonts.append(ImageFont.truetype(name, size))
        font = min(fonts, key=lambda font: len(_lacking(font, lacking)))
        if _lacking(font, lacking):
            _warn_of_boxes()
        return font
    return fonts[0]


def _lacking(font: Any, text: str) -> str:
    """The letters of the text that the font draws as a letter that no font has."""
    box = font.getmask("\U0010ffff")
    return "".join(
        letter
        for letter in sorted({*text})
        if not letter.isascii() and (mask := font.getmask(letter)).size == box.size and bytes(mask) == bytes(box)
    )


@cache
def _warn_of_boxes() -> None:
    """Once, for every image would say the same."""
    click.echo(
        "warning: no font on this machine has some letters of the captions; drawn images show boxes in their place: "
        "install a font such as Noto Sans CJK",
        err=True,
    )


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines of at most ``width`` pixels, broken between words, and between the letters of scripts without spaces."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for piece in word if unspaced_letters(word) else [word]:
            if lines[-1] and font.getlength(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += _clip(piece, font, width)
    return lines


def _clip(text: str, font: Any, width: int) -> str:
    """The text, its end replaced by dots where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
