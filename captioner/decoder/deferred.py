"""A linear layer used at every step of a recurrence, whose weight gradient is one product at the end instead of one a step.

The gradient of a weight used at T steps is the sum of T small products, each as large to write as the weight itself. With the
steps' inputs X and output gradients G stacked it is one product, G^T X.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class DeferredLinear:
    """x -> x W^T + b for one pass over a sequence; make a new one for each pass.

    Args:
        weight: W, (N, M).
        bias: b, (N,); None where every call brings its own term ``add`` (B, N) instead.

    Backpropagate through everything that was computed with it at once: gradients with respect to a part of the graph, with the
    graph retained, would leave the rest waiting for the next backward pass.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._anchor = _Anchor.apply(weight, bias, self._waiting)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x (B, M) and, without a bias, add (B, N) -> (B, N)."""
        return _Product.apply(x, add, self._anchor, self._weight, self._bias, self._waiting)


class _Anchor(torch.autograd.Function):
    """Stands before every product in the graph, so its backward pass runs after all of theirs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, waiting: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.waiting, ctx.has_bias = waiting, bias is not None
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gradients = zip(*ctx.waiting)
        ctx.waiting.clear()
        gradient = torch.cat(gradients)  # (sum of B, N)
        return gradient.t() @ torch.cat(inputs), gradient.sum(0) if ctx.has_bias else None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, add: Tensor | None, anchor: Tensor, weight: Tensor, bias: Tensor | None, waiting: list) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.waiting, ctx.adds = waiting, add is not None
        return torch.addmm(bias if add is None else add, x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        ctx.waiting.append((x.detach(), gradient))  # detached: a graph that holds itself is never freed
        return gradient @ weight, gradient if ctx.adds else None, gradient.new_zeros(()), None, None, None
