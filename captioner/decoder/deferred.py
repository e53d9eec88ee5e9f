"""A linear layer used at every step of a recurrence, whose weight gradient is one product at the end instead of one a step.

The gradient of a weight used at T steps is the sum of T small products, each as large to write as the weight itself. With the
steps' inputs X and output gradients G stacked it is one product, G^T X.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Stack:
    """Inputs (R, M) and output gradients (R, N) of all calls, filled by their backward passes."""

    def __init__(self, rows: int, weight: Tensor) -> None:
        self.rows, self.used = rows, 0
        self.weight = weight.detach()
        self.inputs: Tensor | None = None
        self.gradients: Tensor | None = None

    def open(self) -> None:
        if self.inputs is None:
            self.inputs = self.weight.new_empty(self.rows, self.weight.shape[1])
            self.gradients = self.weight.new_empty(self.rows, self.weight.shape[0])

    def close(self) -> tuple[Tensor, Tensor]:
        filled = self.inputs[: self.used], self.gradients[: self.used]
        self.inputs = self.gradients = None
        return filled


class DeferredLinear:
    """x -> x W^T + b for one pass over a sequence; make a new one for each pass.

    Args:
        weight: W, (N, M).
        bias: b, (N,); None where every call brings its own term ``add`` (B, N) instead.
        rows: the sum of B over all calls, at most.
        columns: sizes of the blocks, N in all, that a call returns.

    Backpropagate through everything that was computed with it at once: a backward pass through a part of the calls would leave
    the other rows of the stack unfilled.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, columns: Sequence[int]) -> None:
        self._stack, self._columns = _Stack(rows, weight), tuple(columns)
        self._bias = None if bias is None else bias.detach()
        self._anchor = _Anchor.apply(weight, bias, self._stack)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> tuple[Tensor, ...]:
        """x (B, M) and, without a bias, add (B, N) -> blocks of columns, (B, N) in all."""
        first = self._stack.used
        self._stack.used += len(x)
        return _Product.apply(x, add, self._anchor, self._bias, self._stack, first, self._columns)


class _Anchor(torch.autograd.Function):
    """Stands before every product in the graph, so its backward pass runs after all of theirs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, stack: _Stack) -> Tensor:
        ctx.stack, ctx.has_bias = stack, bias is not None
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gradients = ctx.stack.close()
        return gradients.t() @ inputs, gradients.sum(0) if ctx.has_bias else None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, add: Tensor | None, anchor: Tensor, bias: Tensor | None, stack: _Stack, first: int, columns: tuple[int, ...]) -> Any:
        ctx.save_for_backward(x)
        ctx.stack, ctx.first, ctx.columns, ctx.adds = stack, first, columns, add is not None
        return torch.addmm(bias if add is None else add, x, stack.weight.t()).split(columns, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *blocks: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.stack.open()
        rows = slice(ctx.first, ctx.first + len(x))
        ctx.stack.inputs[rows] = x
        gradient = ctx.stack.gradients[rows]
        for part, block in zip(gradient.split(ctx.columns, 1), blocks):
            part.copy_(block)
        return gradient @ ctx.stack.weight, gradient if ctx.adds else None, gradient.new_zeros(()), None, None, None, None
