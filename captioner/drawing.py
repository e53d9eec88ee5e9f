"""Images with their captions, and where the decoder looked for each word (Xu et al. 2015, figure 3)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captioner.features.preprocess import visible_box

_WIDTH, _MARGIN, _GAP = 1200, 28, 8
_IMAGE = 212  # longest side of an image
_PANEL = 92  # longest side of a word's panel
_INK, _GREY, _PAPER, _RULE = (24, 26, 31), (112, 117, 128), (255, 255, 255), (226, 229, 234)


@dataclass(frozen=True)
class Example:
    """One image of a sheet.

    Attributes:
        image: mode RGB, any size.
        words: the generated caption.
        attention: (T, P) weights, a row a word and the grid row by row; None: no panels are drawn.
        grid: (rows, columns), rows * columns = P.
        box: (left, top, right, bottom), the part of the image that the grid covers, as shares of its width and
            height.
        reference: one of the image's own captions; None where it has none.
        name: the image's file name.
    """

    image: Image.Image
    words: tuple[str, ...]
    attention: np.ndarray | None
    grid: tuple[int, int]
    box: tuple[float, float, float, float]
    reference: str | None
    name: str


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
    smooth = Image.fromarray(cells).resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BICUBIC)
    whole = np.zeros((height, width), dtype=np.float32)
    whole[top : top + smooth.height, left : left + smooth.width] = np.clip(np.asarray(smooth), 0.0, 1.0)
    return whole


def overlay(
    image: Image.Image, weights: np.ndarray, grid: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    """The image in colour where the decoder looked, dark grey where it did not."""
    colour = np.asarray(image, dtype=np.float32)
    grey = np.repeat(np.asarray(image.convert("L"), dtype=np.float32)[..., None], 3, axis=-1) * 0.4 + 18
    strength = attention_map(weights, grid, box, image.size)[..., None] ** 0.8
    return Image.fromarray((grey + (colour - grey) * strength).round().astype(np.uint8))


def attention_or_none(weights: np.ndarray | None) -> np.ndarray | None:
    """The attention (T, P), or None where it is everywhere alike, as in a decoder without attention: there is nothing
    to draw then."""
    return None if weights is None or (weights.size and float(weights.max() - weights.min()) < 1e-6) else weights


def draw_sheet(examples: list[Example], title: str) -> Image.Image:
    """One sheet: of each image its caption, a reference, the image and a panel a word. Width 1,200 pixels, any
    height."""
    blocks = [_draw_example(example) for example in examples]
    height = _MARGIN + 30 + sum(block.height + 2 * _MARGIN for block in blocks)
    sheet = Image.new("RGB", (_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 8), title, font=_font(16), fill=_GREY)
    top = _MARGIN + 30
    for block in blocks:
        pen.line([(_MARGIN, top), (_WIDTH - _MARGIN, top)], fill=_RULE, width=1)
        sheet.paste(block, (_MARGIN, top + _MARGIN - 8))
        top += block.height + 2 * _MARGIN
    return sheet


def to_bytes(image: Image.Image) -> bytes:
    """PNG with at most 256 colours: a third of the bytes, and the same bytes for the same image."""
    stream = io.BytesIO()
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(
        stream, "PNG", optimize=True
    )
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
    caption = _wrap(" ".join(example.words) or "(no words)", _font(22), width - left)
    reference = (
        _wrap(f"reference: {example.reference}", _font(15), width - left) if example.reference is not None else []
    )
    text_height = 29 * len(caption) + 21 * len(reference) + 12
    block = Image.new("RGB", (width, max(image.height + 22, text_height + lines * line_height)), _PAPER)
    pen = ImageDraw.Draw(block)
    block.paste(image, (0, 0))
    pen.text((0, image.height + 4), _clip(example.name, _font(13), _IMAGE), font=_font(13), fill=_GREY)
    y = -4
    for text in caption:
        pen.text((left, y), text, font=_font(22), fill=_INK)
        y += 29
    for text in reference:
        pen.text((left, y), text, font=_font(15), fill=_GREY)
        y += 21
    y += 14
    for number, (word, panel) in enumerate(zip(example.words, panels, strict=False)):
        x, line = left + (number % columns) * (_PANEL + _GAP), y + (number // columns) * line_height
        block.paste(panel, (x, line))
        pen.text((x, line + panel.height + 2), _clip(word, _font(14), _PANEL), font=_font(14), fill=_INK)
    return block


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side ``side`` pixels, aspect kept."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # ships with Pillow: the same letters on every machine


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines of at most ``width`` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_clip(word, font, width))
    return lines


def _clip(text: str, font: Any, width: int) -> str:
    """The text, its end replaced by dots where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
