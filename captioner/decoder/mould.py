"""Batches of one shape, so that all of them are the same sequence of kernels, as a CUDA graph must be.

A packing has no padding, and hence other shapes with every batch. A mould has shapes that hold each of many batches.
What a batch leaves free is filled up with tokens that are computed and count for nothing. Since all batches of an epoch
are drawn from the same captions,
and their rows lie sorted by length, they differ little: that is some hundredths of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest

import numpy as np
from torch import Tensor

from captioner.decoder.packing import Order, PackedStep, Packing, caption_lengths
from captioner.vocabulary.vocabulary import PAD

_PARTS = (
    64  # shapes are rounded up to a multiple of so small a share of the batch that the next epoch's batches fit too
)


@dataclass(frozen=True)
class Mould:
    """The shapes.

    Attributes:
        images, captions: I, K.
        steps: rows B_t and block (I_t, K_t) of each step; each is at least the largest of the batches.
        waste: cells of all its blocks, in those of the batches' own blocks on average; 1 where all are alike.
    """

    images: int
    captions: int
    steps: tuple[tuple[int, int, int], ...]
    waste: float = field(default=1.0, compare=False)

    @classmethod
    def of(cls, batches: Iterable[np.ndarray]) -> Mould:
        """What holds batches of captions with so many tokens to predict, (I, K) int64 each."""
        shapes = [_shapes(lengths) for lengths in batches]
        images, captions = (max(shape[axis] for shape in shapes) for axis in (0, 1))
        steps = []
        for rows, block, slots in _widest([steps for *_, steps in shapes]):
            block = _rounded(block, images)
            steps.append((min(_rounded(rows, images * captions), block * slots), block, slots))
        return cls(
            images, captions, tuple(steps), _cells(steps) / (sum(_cells(steps) for *_, steps in shapes) / len(shapes))
        )

    def __or__(self, other: Mould) -> Mould:
        """What holds the batches of both."""
        steps = _widest([self.steps, other.steps])
        return Mould(max(self.images, other.images), max(self.captions, other.captions), tuple(steps))

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Step and row of each packed token, (M,) both."""
        rows = np.array([rows for rows, *_ in self.steps])
        return np.nonzero(np.arange(rows[0]) < rows[:, None])

    @property
    def _sizes(self) -> list[int]:
        """Of the parts of ``pour``'s array."""
        tokens, rows = len(self._places[0]), [rows for rows, *_ in self.steps]
        return [tokens] * 5 + [self.images, rows[0], *rows]

    def pour(self, tokens: Tensor) -> np.ndarray:
        """A batch (I, K, T + 1) int64, START, words, END, then PAD, as the int64 numbers that ``packing`` is made of.

        Raises:
            ValueError: it does not fit, or no caption has a token to predict.
        """
        images, captions, width = tokens.shape
        if images > self.images or captions > self.captions or width > len(self.steps) + 1:
            raise ValueError(
                f"a batch {tuple(tokens.shape)} in a mould of {self.images}, {self.captions} and {len(self.steps)} steps"
            )
        table = np.full((self.images, self.captions, len(self.steps) + 1), PAD, dtype=np.int64)
        table[:images, :captions, :width] = tokens.numpy()
        order = Order.of(caption_lengths(table))
        spare = np.ones(self.images * self.captions, dtype=bool)  # captions that fill up the rows
        spare[order.rows] = False
        rows = np.concatenate([order.rows, np.flatnonzero(spare)])[: self.steps[0][0]]
        row_image = np.zeros(len(rows), dtype=np.int64)
        row_image[: len(order.rows)] = order.row_image
        places, counts = [], (order.row_length > np.arange(len(self.steps))[:, None]).sum(1)
        for count, (filled, block, slots) in zip(counts, self.steps):
            place = order.row_image[:count] * slots + order.row_slot[:count]
            free = np.ones(block * slots, dtype=bool)
            free[place] = False
            places.append(np.concatenate([place, np.flatnonzero(free)])[:filled])
        step, row = self._places
        ordered = table.reshape(-1, len(self.steps) + 1)[rows].T  # (T + 1, B)
        return np.concatenate(
            [
                ordered[step, row],
                ordered[step + 1, row],
                rows[row],
                step,
                row < counts[step],
                order.image_order,
                row_image,
                *places,
            ],
            dtype=np.int64,
            casting="unsafe",
        )

    def packing(self, numbers: Tensor) -> Packing:
        """The packing of ``pour``'s numbers, on any device; but for ``real`` its tensors are views of them."""
        inputs, targets, caption, step, real, image_order, row_image, *places = numbers.split(self._sizes)
        steps = tuple(PackedStep(*shape, place) for shape, place in zip(self.steps, places))
        shape = (self.images, self.captions, len(self.steps))
        return Packing(inputs, targets, steps, image_order, row_image, caption, step, shape, real.bool())


def _shapes(lengths: np.ndarray) -> tuple[int, int, list[tuple[int, int, int]]]:
    """I, K, and B_t, I_t, K_t of each step."""
    longer = (lengths > np.arange(lengths.max())[:, None, None]).sum(2)  # (T, I), captions of each picture that go on
    return *lengths.shape, list(zip(longer.sum(1).tolist(), (longer > 0).sum(1).tolist(), longer.max(1).tolist()))


def _cells(steps: Sequence[tuple[int, int, int]]) -> int:
    return sum(block * slots for _, block, slots in steps)


def _widest(batches: Sequence[Sequence[tuple[int, int, int]]]) -> list[tuple[int, int, int]]:
    """The largest shape of each step."""
    return [tuple(map(max, zip(*step))) for step in zip_longest(*batches, fillvalue=(0, 0, 0))]


def _rounded(number: int, most: int) -> int:
    unit = max(1, most // _PARTS)
    return min(most, -(-number // unit) * unit)
