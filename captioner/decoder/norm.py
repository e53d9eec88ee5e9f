"""Normalisation of projected features, by the name that ``train.norm`` has; encoders differ in the scale of their
features by a factor of 50."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioner.errors import CaptionerError


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) of features (..., E), as torch.nn.BatchNorm1d on all their rows.

    While training, mean and variance are those of the rows given, in eval mode the running ones, of which each batch
    replaces a tenth.

    Attributes:
        all_reduce: adds a tensor up over all processes that share a batch, in place, and returns it. Each of them must
            then do its forward and its backward pass with every batch, with no rows (0, E) where it has none.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))
        self.all_reduce: Callable[[Tensor], Tensor] = _alone

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) of any float dtype -> the same shape, of the weight's dtype."""
        x = x.to(self.weight.dtype)
        if not self.training:
            return (x - self.running_mean) * self._scale(self.running_var) + self.bias
        rows = x.reshape(-1, x.shape[-1])
        sums = _SumOverProcesses.apply(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))]), self.all_reduce)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean
        variance = _SumOverProcesses.apply(centred.reshape(rows.shape).square().sum(0), self.all_reduce) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), _MOMENTUM)  # without bias
        return centred * self._scale(variance) + self.bias

    def _scale(self, variance: Tensor) -> Tensor:
        return self.weight * (variance + _EPSILON).rsqrt()

    def extra_repr(self) -> str:
        return str(len(self.weight))


_MOMENTUM, _EPSILON = 0.1, 1e-5  # torch's defaults


def _alone(flat: Tensor) -> Tensor:
    return flat


class _SumOverProcesses(torch.autograd.Function):
    """Everybody's loss depends on the sum, so the gradient of a summand is the sum of everybody's gradients."""

    @staticmethod
    def forward(ctx: Any, summand: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.all_reduce = all_reduce
        return all_reduce(summand.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.all_reduce(gradient.clone()), None


NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "batch": BatchNorm, "none": nn.Identity}


def build_norm(name: str, size: int) -> nn.Module:
    """The normalisation called ``name`` of features (..., size).

    Raises:
        CaptionerError: there is none.
    """
    if name not in NORMS:
        raise CaptionerError(f"train.norm={name}: no such normalisation; it must be one of {', '.join(NORMS)}")
    return NORMS[name](size)
