"""A linear layer used at every step of a recurrence, whose weight gradient is one product at the end instead of one a
step.

The gradient of a weight used at T steps is the sum of T small products, each as large to write as the weight itself.
With the steps' inputs X and output gradients G stacked it is one product, G^T X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast gives matrix products on the tensor's device; the tensor's own where it is off."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


class _Stack:
    """Inputs (R, M) and output gradients (R, N) of all calls, filled by their backward passes."""

    def __init__(self, rows: int, weight: Tensor) -> None:
        self.rows, self.used = rows, 0
        self.weight = weight.detach().to(product_dtype(weight))
        self.inputs: Tensor | None = None
        self.gradients: Tensor | None = None

    def open(self) -> None:
        if self.inputs is None:
            self.inputs = self.weight.new_empty(self.rows, self.weight.shape[1])
            self.gradients = self.weight.new_empty(self.rows, self.weight.shape[0])

    def close(self) -> tuple[Tensor, Tensor]:
        filled = self.inputs, self.gradients
        self.inputs = self.gradients = None
        return filled


class DeferredLinear:
    """Rows of x W^T + b, a few at a time; make a new one for each pass over a sequence.

    Under autocast the products are of its dtype; what goes in and comes out keeps the weight's.

    Args:
        weight: W, (N, M).
        base: b: either a bias (N,), or (R, N) with one term for each row of all calls, in the order of the calls; that
            one is overwritten, so nothing else may need its values.
        rows: R, the sum of B over all calls.
        columns: sizes of the blocks, N in all, that a call returns.

    Backpropagate through everything that was computed with it at once: a backward pass through a part of the calls
    would leave the other rows of the stack unfilled.
    """

    def __init__(self, weight: Tensor, base: Tensor, rows: int, columns: Sequence[int]) -> None:
        self._stack, self._columns, self._base = _Stack(rows, weight), tuple(columns), base.detach()
        self._anchor = _Anchor.apply(weight, base, self._stack)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, M) -> blocks of columns, (B, N) in all."""
        first = self._stack.used
        self._stack.used += len(x)
        return _Product.apply(x, self._anchor, self._base, self._stack, first, self._columns)


class _Anchor(torch.autograd.Function):
    """Stands before every product in the graph, so its backward pass runs after all of theirs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, base: Tensor, stack: _Stack) -> Tensor:
        ctx.stack, ctx.is_bias, ctx.dtype = stack, base.dim() == 1, weight.dtype
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gradients = ctx.stack.close()
        dtype = ctx.dtype
        base = gradients.sum(0, dtype=dtype) if ctx.is_bias else gradients.to(dtype)
        return (gradients.t() @ inputs).to(dtype), base, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, base: Tensor, stack: _Stack, first: int, columns: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.stack, ctx.columns, ctx.rows = stack, columns, slice(first, first + len(x))
        if stack.weight.dtype != x.dtype:
            product = x.to(stack.weight.dtype) @ stack.weight.t()
            return (base + product if base.dim() == 1 else base[ctx.rows].add_(product)).split(columns, 1)
        if base.dim() == 1:
            return torch.addmm(base, x, stack.weight.t()).split(columns, 1)
        return base[ctx.rows].addmm_(x, stack.weight.t()).split(columns, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *blocks: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.stack.open()
        ctx.stack.inputs[ctx.rows] = x
        gradient = ctx.stack.gradients[ctx.rows]
        for part, block in zip(gradient.split(ctx.columns, 1), blocks):
            part.copy_(block)
        return (gradient @ ctx.stack.weight).to(x.dtype), x.new_zeros(()), None, None, None, None
