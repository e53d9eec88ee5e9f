"""Gated recurrent unit (Cho et al. 2014, section 2.3), with the reset gate after the product as in torch.nn.GRUCell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Cell:
    """r, z = sigmoid(x_rz + h_rz); n = tanh(x_n + r * h_n); h' = n + z * (h - n). Column blocks: r, z, n."""

    gates = 3
    states = 1

    def combine(self, inputs: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Input part and hidden part (B, 3H), state (h,) of (B, H) -> (h',)."""
        return (_Combine.apply(inputs, hidden, *state),)


class _Combine(torch.autograd.Function):
    """Written out because autograd would build each gradient (B, 3H) from zero-filled pieces."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, hidden: Tensor, h: Tensor) -> Tensor:
        size = h.shape[1]
        gates = (inputs[:, : 2 * size] + hidden[:, : 2 * size]).sigmoid_()  # (B, 2H)
        reset, update = gates.split(size, 1)
        product = hidden[:, 2 * size :]
        new = torch.addcmul(inputs[:, 2 * size :], reset, product).tanh_()
        ctx.save_for_backward(gates, product, new, h)
        return torch.lerp(new, h, update)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, product, new, h = ctx.saved_tensors
        size = h.shape[1]
        reset, update = gates.split(size, 1)
        h_gradient = gradient * update
        inputs = torch.empty(len(h), 3 * size, dtype=h.dtype, device=h.device)
        new_part = inputs[:, 2 * size :]
        torch.ops.aten.tanh_backward.grad_input(gradient - h_gradient, new, grad_input=new_part)
        torch.ops.aten.sigmoid_backward.grad_input(new_part * product, reset, grad_input=inputs[:, :size])
        torch.ops.aten.sigmoid_backward.grad_input(gradient * (h - new), update, grad_input=inputs[:, size : 2 * size])
        hidden = inputs.clone()
        hidden[:, 2 * size :] *= reset
        return inputs, hidden, h_gradient
