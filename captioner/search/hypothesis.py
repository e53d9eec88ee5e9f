"""A finished caption as ids, and the books it is unrolled from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A finished caption.

    Attributes:
        tokens: word ids without <start> and <end>.
        log_probability: sum of the natural log-probabilities of all its words and of <end>.
        score: ``log_probability / n ** length_normalisation + length_reward * n``, n = len(tokens) + 1: <end> counts as
            a word.
        attention: weights (T, P) float32 on the CPU, row t for token t; None unless asked for.
    """

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    attention: Tensor | None = None


@dataclass(frozen=True)
class StepRecord:
    """What one step decided for the J pictures that were still searched.

    Attributes:
        rows: (I,) int64, the row of each picture of the batch in the tensors below; arbitrary where it had left.
        words: (J, K) int64, the word that each new hypothesis ends in.
        parents: (J, K) int64, the old hypothesis that it continues.
        weights: (J, K_old, P), attention of the old hypotheses while they chose, or None.
    """

    rows: Tensor
    words: Tensor
    parents: Tensor
    weights: Tensor | None


def unroll(records: list[StepRecord], images: Tensor, steps: Tensor, slots: Tensor) -> tuple[Tensor, Tensor | None]:
    """Follow the back-pointers of H finished hypotheses, all at once.

    Args:
        records: one a step.
        images: (H,) int64, the picture of each.
        steps: (H,) int64, the step at which each chose <end>; it has that many words.
        slots: (H,) int64, which old hypothesis chose <end> at that step.

    Returns:
        Words (H, T) int64, T the most words, 0 beyond a hypothesis' own; attention (H, T, P) or None.
    """
    longest = int(steps.max()) if len(steps) else 0
    words = torch.zeros(len(images), longest, dtype=torch.int64, device=images.device)
    attention = None
    for step in range(longest - 1, -1, -1):
        record = records[step]
        active = steps > step
        rows = torch.where(active, record.rows[images], 0)
        at = torch.where(active, slots, 0)
        parents = record.parents[rows, at]
        words[:, step] = torch.where(active, record.words[rows, at], 0)
        if record.weights is not None:
            weights = record.weights[rows, parents]  # (H, P)
            if attention is None:
                attention = weights.new_zeros(len(images), longest, weights.shape[-1])
            attention[:, step] = weights
        slots = torch.where(active, parents, slots)
    return words, attention
