"""Vocabulary layer, softmax and cross entropy in one, a block of tokens at a time.

The logits of a step are its largest tensor by far (1,200 tokens of 9,500 words are 46 MB), and the usual chain of layer,
log-softmax and loss writes several of that size. Here a block of logits becomes its own gradient in place, and both products of the
backward pass are taken from it at once. (The idea is that of Liger Kernel, Hsu et al. 2024, section 3.2.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BLOCK_BYTES = 24 << 20  # larger ones are given back to the system and cleared anew at every step
_GPU_BLOCKS = 16  # times as large on a GPU, which wants large products and keeps its memory


def vocabulary_loss(layer: nn.Linear, hidden: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of ``layer(hidden)``.

    Args:
        layer: H -> V, with a bias.
        hidden: (M, H).
        targets: (M,) int64.
        scale: what the loss is multiplied with, 1 / tokens for a mean.

    Returns:
        The scaled loss, a scalar to backpropagate from, and the cross entropy in nats summed over the targets, detached.
    """
    return _VocabularyLoss.apply(hidden, layer.weight, layer.bias, targets, scale)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        room = _BLOCK_BYTES * (1 if hidden.device.type == "cpu" else _GPU_BLOCKS)
        blocks = -(-len(hidden) * len(weight) * hidden.element_size() // room)
        rows = -(-len(hidden) // blocks)
        logits = hidden.new_empty(rows, len(weight))
        gradients = torch.empty_like(hidden), torch.zeros_like(weight) if blocks > 1 else torch.empty_like(weight), torch.zeros_like(bias)
        total = hidden.new_zeros(())
        for block, wanted, gradient in zip(hidden.split(rows), targets.unsqueeze(1).split(rows), gradients[0].split(rows)):
            slope = torch.addmm(bias, block, weight.t(), out=logits[: len(block)])  # (R, V)
            margin = slope.amax(1, keepdim=True) - slope.gather(1, wanted)
            torch.softmax(slope, 1, out=slope)
            total += (margin - slope.amax(1, keepdim=True).log()).sum()  # log-sum-exp is the highest logit less the log of its probability
            slope.scatter_add_(1, wanted, slope.new_full((), -1.0).expand_as(wanted))  # d loss / d logits = softmax - one-hot
            torch.mm(slope, weight, out=gradient)
            gradients[1].addmm_(slope.t(), block, beta=int(blocks > 1))
            gradients[2].add_(slope.sum(0))
        ctx.save_for_backward(*(tensor.mul_(scale) for tensor in gradients))
        ctx.mark_non_differentiable(total)
        return total * scale, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if gradient.device.type == "cpu" and gradient == 1:
            return (*ctx.saved_tensors, None, None)
        return (*(tensor * gradient for tensor in ctx.saved_tensors), None, None)
