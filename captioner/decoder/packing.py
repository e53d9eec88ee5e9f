"""Captions of a batch in the order in which teacher forcing computes them: only real tokens, longest captions first.

At step t the captions longer than t are a prefix of the rows, so every step works on the first rows of the last one's
result and nothing is computed for padding. Attention wants the captions of a picture side by side, so each step also
knows the smallest block (I_t, K_t) of pictures and slots that holds its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captioner.device import to_device
from captioner.vocabulary.vocabulary import PAD


@dataclass(frozen=True)
class PackedStep:
    """The rows of one step.

    Attributes:
        rows: B_t, captions that have a token to predict.
        images: I_t, the first pictures of the packing's order hold all of them.
        slots: K_t, the most that one picture has.
        place: (B_t,) int64, where row b stands in the block, image * K_t + slot; None where row b stands at b and the
            block is full.
    """

    rows: int
    images: int
    slots: int
    place: Tensor | None


@dataclass(frozen=True)
class Order:
    """Which row each caption of a batch (I, K) is, longest first; numpy arrays of int64.

    Attributes:
        rows: (B,), the captions that have a token to predict, image * K + k.
        row_length: (B,), how many each has.
        image_order: (I,), pictures by their longest caption.
        row_image: (B,), row -> picture, in ``image_order``.
        row_slot: (B,), row -> its place among the captions of the picture, longest first.
    """

    rows: np.ndarray
    row_length: np.ndarray
    image_order: np.ndarray
    row_image: np.ndarray
    row_slot: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray) -> Order:
        """Order captions by how many tokens each has to predict, (I, K).

        Raises:
            ValueError: none of them has one.
        """
        slots, flat = lengths.shape[1], lengths.reshape(-1)
        rows = np.argsort(-flat, kind="stable")
        rows = rows[flat[rows] > 0]  # (B,)
        if not rows.size:
            raise ValueError("a batch without a token to predict")
        image_order = np.argsort(-lengths.max(1), kind="stable")
        image_rank = np.argsort(image_order, kind="stable")
        slot_rank = np.argsort(np.argsort(-lengths, axis=1, kind="stable"), axis=1, kind="stable").reshape(-1)
        return cls(rows, flat[rows], image_order, image_rank[rows // slots], slot_rank[rows])


def caption_lengths(tokens: np.ndarray) -> np.ndarray:
    """Tokens (..., T + 1) -> how many each caption has to predict, (...)."""
    return np.maximum((tokens != PAD).sum(-1) - 1, 0)


@dataclass(frozen=True)
class Packing:
    """Captions (I, K, T + 1) as packed tokens; M real target tokens, B captions with at least one of them.

    Attributes:
        inputs, targets: (M,) int64, step after step; the word that goes in and the word to predict.
        steps: one entry a step.
        image_order: (I,) int64, pictures in the order that steps refer to.
        row_image: (B,) int64, row -> picture, in ``image_order``.
        caption: (M,) int64, which caption a packed token belongs to, image * K + k in the caller's order.
        step: (M,) int64, which step it belongs to.
        shape: (I, K, T) as given.
        real: (M,) bool, False where a token only fills up the shapes of a ``Mould``; None: all are real.
    """

    inputs: Tensor
    targets: Tensor
    steps: tuple[PackedStep, ...]
    image_order: Tensor
    row_image: Tensor
    caption: Tensor
    step: Tensor
    shape: tuple[int, int, int]
    real: Tensor | None = None

    def masked(self, values: Tensor) -> Tensor:
        """Values of the packed tokens, (M,) or (M, N), zero where a token is not real."""
        return values if self.real is None else values * self.real.view(-1, *[1] * (values.dim() - 1))

    @classmethod
    def of(cls, tokens: Tensor, device: torch.device, inputs: Tensor | None = None) -> Packing:
        """Pack tokens (I, K, T + 1) int64: START, words, END, then PAD; a caption of PAD alone does not count.

        Args:
            inputs: (I, K, T) int64, the words that go in, where they are not ``tokens[..., :-1]``.

        Raises:
            ValueError: no caption has a token to predict.
        """
        images, slots, width = tokens.shape
        table = tokens.detach().cpu().numpy().reshape(images * slots, width)
        order = Order.of(caption_lengths(table).reshape(images, slots))
        rows, row_length, image_order = order.rows, order.row_length, order.image_order
        row_image, row_slot = order.row_image, order.row_slot

        active = np.arange(row_length[0])[:, None] < row_length  # (T', B)
        counts = active.sum(1)
        shapes, places = [], []
        for count in counts:
            block = (int(row_image[:count].max()) + 1, int(row_slot[:count].max()) + 1)
            place = row_image[:count] * block[1] + row_slot[:count]
            full = block[0] * block[1] == count and np.array_equal(place, np.arange(count))
            shapes.append((int(count), *block, full))
            places.append(place)
        ordered = table[rows].T  # (T + 1, B)
        step, row = np.nonzero(active)
        arrays = [ordered[step, row], ordered[step + 1, row], image_order, row_image, rows[row], step, *places]
        together = to_device(np.concatenate(arrays, dtype=np.int64), device)  # one copy
        given, targets, image_order, row_image, caption, step, *places = together.split(
            [len(array) for array in arrays]
        )
        return cls(
            inputs=given if inputs is None else inputs.to(device).flatten(0, 1)[caption, step],
            targets=targets,
            steps=tuple(PackedStep(b, i, k, None if full else place) for (b, i, k, full), place in zip(shapes, places)),
            image_order=image_order,
            row_image=row_image,
            caption=caption,
            step=step,
            shape=(images, slots, width - 1),
        )
