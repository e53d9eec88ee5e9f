"""Random choices by weight."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(passed: Tensor, count: int = 1) -> Tensor:
    """Choose by torch's global generator of the device: where the cumulated weights pass a random number.

    Args:
        passed: (..., N) cumulated weights of the outcomes, which need not end at 1; random numbers are of its dtype.
        count: of choices, independent of one another.

    Returns:
        (..., count) int64. An outcome of weight 0 is never chosen.
    """
    at = torch.rand(*passed.shape[:-1], count, dtype=passed.dtype, device=passed.device) * passed[..., -1:]
    return torch.searchsorted(passed, at, right=True).clamp_(
        max=passed.shape[-1] - 1
    )  # right: a weight of 0 is passed over
