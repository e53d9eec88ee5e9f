"""What the recurrent decoder asks of an attention mechanism."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Scores the grid positions of an image by the hidden state, and returns their weighted sum.

    Shapes: I images, K captions of each, P positions; E the size of a projected feature, H of the hidden state.
    The captions of an image are a dimension of the query: keys and values are never repeated.
    """

    def keys(self, values: Tensor) -> Tensor:
        """What is computed once an image: projected features (I, P, E) -> keys (I, P, A)."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden (I, K, H), keys (I, P, A), values (I, P, E), mean (I, E) -> context (I, K, E), weights (I, K, P)."""
        raise NotImplementedError

    def start_sequence(self, tokens: Tensor) -> None:
        """Called before the first step of teacher forcing with all its tokens (I, K, T)."""


def softmax(scores: Tensor) -> Tensor:
    """Scores (..., P) -> weights that add up to 1, in fp32 at least: on a CPU autocast alone would leave bf16."""
    half = scores.dtype in (torch.float16, torch.bfloat16)
    return torch.softmax(scores, -1, dtype=torch.float32 if half else None)
