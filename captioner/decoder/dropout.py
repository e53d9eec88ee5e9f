"""Dropout with eight decisions from one random number."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) scaled while training, as torch.nn.Dropout.

    On a CPU torch draws each decision on its own, which took a thirtieth of a training step. Here each byte of a 64-bit
    random number decides for one value, so the probability is rounded to a multiple of 1/256, and the scale fits the
    rounded one.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self._threshold = round(256 * probability)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and device; the identity in eval mode."""
        if not self.training or not self._threshold:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self._threshold / 256)
        count = x.numel()
        numbers = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.uint8)[:count].view(x.shape) >= self._threshold
        return x * kept.to(x.dtype).mul_(256 / (256 - self._threshold))

    def extra_repr(self) -> str:
        return f"probability={self.probability}"
