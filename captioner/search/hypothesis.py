"""A finished caption as token ids, and the back-pointers it is read from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A finished caption.

    Attributes:
        tokens: token ids without START and END.
        log_probability: sum of the natural log-probabilities of all its tokens and of END.
        score: ``log_probability / n ** length_normalisation + length_reward * n``, n = len(tokens) + 1: END counts.
        attention: weights (T, P) float32 on the CPU, row t for token t; None unless asked for.
    """

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    attention: Tensor | None = None


@dataclass(frozen=True)
class StepRecord:
    """What one step chose for the J images that were in the batch.

    Attributes:
        rows: (I,) int64, the row of each image in the tensors below; arbitrary where the image had left the batch.
        tokens: (J, K) int64, the last token of each new hypothesis.
        parents: (J, K) int64, the old hypothesis that it continues.
        weights: (J, K_old, P), attention of the old hypotheses at this step, or None.
    """

    rows: Tensor
    tokens: Tensor
    parents: Tensor
    weights: Tensor | None


def unroll(records: list[StepRecord], images: Tensor, steps: Tensor, slots: Tensor) -> tuple[Tensor, Tensor | None]:
    """Follow the back-pointers of H finished hypotheses, all at once.

    Args:
        records: one a step.
        images: (H,) int64, the image of each.
        steps: (H,) int64, the step at which each chose END, which is its number of tokens.
        slots: (H,) int64, which old hypothesis chose END at that step.

    Returns:
        Tokens (H, T) int64, T the longest caption, 0 after the end of shorter ones; attention (H, T, P) or None.
    """
    longest = int(steps.max()) if len(steps) else 0
    tokens = torch.zeros(len(images), longest, dtype=torch.int64, device=images.device)
    attention = None
    for step in range(longest - 1, -1, -1):
        record = records[step]
        active = steps > step
        rows = torch.where(active, record.rows[images], 0)
        slot = torch.where(active, slots, 0)
        parents = record.parents[rows, slot]
        tokens[:, step] = torch.where(active, record.tokens[rows, slot], 0)
        if record.weights is not None:
            weights = record.weights[rows, parents]  # (H, P)
            if attention is None:
                attention = weights.new_zeros(len(images), longest, weights.shape[-1])
            attention[:, step] = weights
        slots = torch.where(active, parents, slots)
    return tokens, attention
