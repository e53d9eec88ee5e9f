"""Gated recurrent unit (Cho et al. 2014, section 2.3), with the reset gate after the product as in torch.nn.GRUCell."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor


class Cell:
    """r, z = sigmoid(x_rz + h_rz); n = tanh(x_n + r * h_n); h' = n + z * (h - n). Column blocks: r, z, n."""

    gates = 3
    states = 1

    def combine(self, inputs: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Input part and hidden part (B, 3H), state (h,) of (B, H) -> (h',)."""
        (h,) = state
        size = h.shape[-1]
        reset, update = torch.sigmoid(inputs[:, : 2 * size] + hidden[:, : 2 * size]).split(size, 1)  # (B, H) each
        new = torch.tanh(torch.addcmul(inputs[:, 2 * size :], reset, hidden[:, 2 * size :]))
        return (torch.lerp(new, h, update),)
