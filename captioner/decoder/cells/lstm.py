"""Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000), as torch.nn.LSTMCell."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor


class Cell:
    """i, f, o = sigmoid; g = tanh; c' = f * c + i * g; h' = o * tanh(c'). Column blocks: i, f, o, g (one sigmoid for three)."""

    gates = 4
    states = 2

    def combine(self, inputs: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Input part and hidden part (B, 4H), state (h, c) of (B, H) -> (h', c')."""
        h, c = state
        size = h.shape[-1]
        total = inputs + hidden
        enter, forget, out = torch.sigmoid(total[:, : 3 * size]).split(size, 1)  # (B, H) each
        c = torch.addcmul(forget * c, enter, torch.tanh(total[:, 3 * size :]))
        return out * torch.tanh(c), c
