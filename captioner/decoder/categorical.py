"""Draws from a categorical distribution, faster than ``torch.multinomial``, which draws a number for each outcome."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(cumulative: Tensor, count: int = 1) -> Tensor:
    """Inverse transform sampling with torch's global generator of the device.

    Args:
        cumulative: (..., N) cumulative weights of the outcomes, which need not end at 1; random numbers have its
            dtype.
        count: of independent draws.

    Returns:
        (..., count) int64. An outcome of weight 0 is never drawn.
    """
    shape = (*cumulative.shape[:-1], count)
    uniform = torch.rand(shape, dtype=cumulative.dtype, device=cumulative.device) * cumulative[..., -1:]
    # right=True passes over outcomes of weight 0
    return torch.searchsorted(cumulative, uniform, right=True).clamp_(max=cumulative.shape[-1] - 1)


def draw_words(logits: Tensor, count: int = 1) -> Tensor:
    """Draw ``count`` words by softmax(logits): (..., V) -> (..., count) int64."""
    probabilities = logits.softmax(-1)
    # a CPU adds in float64 whatever it stores; a GPU adds in what it stores
    dtype = None if logits.device.type == "cpu" else torch.float64
    return draw(probabilities.cumsum(-1, dtype=dtype), count)
