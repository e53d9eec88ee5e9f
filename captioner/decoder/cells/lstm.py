"""Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000), as
torch.nn.LSTMCell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Cell:
    """i, f, o = sigmoid; g = tanh; c' = f * c + i * g; h' = o * tanh(c'). Column blocks: i, f, o, g (one sigmoid for
    three)."""

    gates = 4
    states = 2

    def combine(self, inputs: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Input part and hidden part (B, 4H), state (h, c) of (B, H) -> (h', c')."""
        return _Combine.apply(inputs, hidden, state[1])


class _Combine(torch.autograd.Function):
    """Written out because autograd would build the gradient (B, 4H) from zero-filled pieces."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, hidden: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        size = c.shape[1]
        gates = inputs + hidden  # (B, 4H)
        gates[:, : 3 * size].sigmoid_()
        gates[:, 3 * size :].tanh_()
        enter, forget, out, new = gates.split(size, 1)
        following = torch.addcmul(forget * c, enter, new)
        squashed = following.tanh()
        ctx.save_for_backward(gates, c, squashed)
        return out * squashed, following

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h_gradient: Tensor, c_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, c, squashed = ctx.saved_tensors
        enter, forget, out, new = gates.split(c.shape[1], 1)
        total = torch.empty_like(gates)
        enter_part, forget_part, out_part, new_part = total.split(c.shape[1], 1)
        sigmoid_backward, tanh_backward = (
            torch.ops.aten.sigmoid_backward.grad_input,
            torch.ops.aten.tanh_backward.grad_input,
        )
        sigmoid_backward(h_gradient * squashed, out, grad_input=out_part)
        c_gradient = c_gradient + torch.ops.aten.tanh_backward(h_gradient * out, squashed)
        sigmoid_backward(c_gradient * new, enter, grad_input=enter_part)
        sigmoid_backward(c_gradient * c, forget, grad_input=forget_part)
        tanh_backward(c_gradient * enter, new, grad_input=new_part)
        return total, total, c_gradient * forget
