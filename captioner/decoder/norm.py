"""Normalisation of projected features, by the name that ``train.norm`` has.

The features of different encoders differ in scale by a factor of 50.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed
import torch.distributed.nn.functional
from torch import Tensor, nn

from captioner.errors import CaptionerError


class BatchNorm(nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` over the channels of (..., E) with the statistics of all ranks.

    ``torch.nn.SyncBatchNorm`` does that on GPUs alone. A rank may have no rows, (0, E), in a batch; it must do its
    forward and backward pass all the same, since the statistics are summed over the ranks in both.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) of any float dtype -> the same shape, in the weight's dtype."""
        rows = x.to(self.weight.dtype).flatten(0, -2)  # (R, E)
        if not self.training:
            return super().forward(rows).view(x.shape)
        count, total = _sum_over_ranks(rows.new_tensor([len(rows)])), _sum_over_ranks(rows.sum(0))
        centred = rows - total / count
        variance = _sum_over_ranks(centred.square().sum(0)) / count
        with torch.no_grad():
            for running, own in (
                (self.running_mean, total / count),
                (self.running_var, variance * count / (count - 1).clamp(min=1)),  # unbiased
            ):
                assert running is not None
                running.lerp_(own, _MOMENTUM)
        return (centred * (variance + self.eps).rsqrt() * self.weight + self.bias).view(x.shape)


def _sum_over_ranks(x: Tensor) -> Tensor:
    """The differentiable sum over all ranks."""
    if not torch.distributed.is_initialized():
        return x
    return torch.distributed.nn.functional.all_reduce(x)


_MOMENTUM = 0.1  # torch's default
NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "batch": BatchNorm, "none": nn.Identity}


def build_norm(name: str, size: int) -> nn.Module:
    """The normalisation called ``name`` of features (..., size).

    Raises:
        CaptionerError: there is none.
    """
    if name not in NORMS:
        raise CaptionerError(f"train.norm={name}: no such normalisation; it must be one of {', '.join(NORMS)}")
    return NORMS[name](size)
