"""Vocabulary layer, softmax and cross entropy in one, a block of tokens at a time.

The logits of a step are its largest tensor by far (1,200 tokens of 9,500 words are 46 MB), and the usual chain of
layer, log-softmax and loss writes several of that size. Here a block of logits becomes its own gradient in place, and
both products of the backward pass are taken from it at once. (The idea is that of Liger Kernel, Hsu et al. 2024,
section 3.2.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioner.decoder.deferred import product_dtype
from captioner.decoder.tied import TiedVocabulary

_BLOCK_BYTES = 24 << 20  # larger ones are given back to the system and cleared anew at every step
_CHUNK_BYTES = (
    2 << 20
)  # of logits on which softmax and loss work at a time, so that they stay in the processor's second cache
_GPU_BLOCKS = 16  # times as large on a GPU, which wants large products and keeps its memory


def vocabulary_loss(
    layer: nn.Linear | TiedVocabulary,
    hidden: Tensor,
    targets: Tensor,
    scale: float | Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    banned: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Cross entropy of ``layer(hidden)``.

    Args:
        layer: H -> V, with a bias; where its weight is frozen no time goes into a gradient for it.
        hidden: (M, H).
        targets: (M,) int64.
        scale: what the loss is multiplied with, 1 / tokens for a mean; a number or a scalar.
        weights: (M,) what each token's loss is multiplied with, of any sign (an advantage, in REINFORCE); None: 1.
        smoothing: the share of the target distribution that is spread over all V words (Szegedy et al. 2016, section
            7).
        banned: words of probability 0, none of them a target; those of the others are scaled up to a sum of 1. Not with
            smoothing.

    Returns:
        The scaled, weighted and smoothed loss, a scalar to backpropagate from; and the cross entropy of each target in
        nats, (M,), neither smoothed nor weighted, detached.
    """
    bias = layer.bias
    if banned:
        bias = bias.index_fill(0, torch.tensor(banned, device=bias.device), -math.inf)
    return _VocabularyLoss.apply(hidden, layer.weight, bias, targets, scale, weights, smoothing)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        scale: float | Tensor,
        weights: Tensor | None,
        smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype(hidden)  # of the products; the softmax and all sums stay in the weight's own
        factor, low_bias = weight.to(dtype), bias.to(dtype)
        on_cpu = hidden.device.type == "cpu"
        blocks = -(-len(hidden) * len(weight) * dtype.itemsize // (_BLOCK_BYTES * (1 if on_cpu else _GPU_BLOCKS)))
        rows = -(-len(hidden) // blocks)
        chunk = max(1, _CHUNK_BYTES // (len(weight) * hidden.element_size())) if on_cpu else rows
        logits = hidden.new_empty(rows, len(weight), dtype=dtype)
        scratch = None if dtype == weight.dtype else hidden.new_empty(min(chunk, rows), len(weight))
        slopes = None
        if ctx.needs_input_grad[1]:
            slopes = torch.zeros_like(weight) if blocks > 1 else torch.empty_like(weight)
        gradients = torch.empty_like(hidden), slopes, torch.zeros_like(bias)
        entropies = hidden.new_empty(len(hidden))
        loss = hidden.new_zeros(())
        for first in range(0, len(hidden), rows):
            part = slice(first, first + rows)
            block = hidden[part].to(dtype)
            scores = torch.addmm(low_bias, block, factor.t(), out=logits[: len(block)])  # (R, V)
            for start in range(0, len(block), chunk):
                low = scores[start : start + chunk]
                slope = low if scratch is None else scratch[: len(low)].copy_(low)
                own = slice(first + start, first + start + len(low))
                share = None if weights is None else weights[own]
                entropy, smooth = _to_gradient(slope, targets[own].unsqueeze(1), share, smoothing)
                entropies[own] = entropy
                loss += (smooth if share is None else smooth * share).sum()
                gradients[2].add_(slope.sum(0))
                if scratch is not None:
                    low.copy_(slope)
            if dtype == weight.dtype:
                torch.mm(scores, weight, out=gradients[0][part])
                if slopes is not None:
                    slopes.addmm_(scores.t(), block, beta=int(blocks > 1))
            else:
                gradients[0][part] = scores @ factor
                if slopes is not None:
                    product = scores.t() @ block
                    slopes.add_(product) if blocks > 1 else slopes.copy_(product)
        ctx.save_for_backward(*(tensor if tensor is None else tensor.mul_(scale) for tensor in gradients))
        ctx.mark_non_differentiable(entropies)
        return loss * scale, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if gradient.device.type == "cpu" and gradient == 1:
            return (*ctx.saved_tensors, *_NO_GRADIENTS)
        return (*(tensor if tensor is None else tensor * gradient for tensor in ctx.saved_tensors), *_NO_GRADIENTS)


def _to_gradient(slope: Tensor, wanted: Tensor, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """Logits (R, V) become d loss / d logits in place; returns each row's cross entropy and its smoothed one, (R,)."""
    highest = slope.amax(1, keepdim=True)
    margin = highest - slope.gather(1, wanted)
    spread = highest.squeeze(1) - slope.mean(1) if smoothing else None
    torch.softmax(slope, 1, out=slope)
    rest = slope.amax(1).log().neg_()  # log-sum-exp is the highest logit less the log of its probability
    entropy = margin.squeeze(1) + rest
    smooth = torch.lerp(entropy, spread + rest, smoothing) if smoothing else entropy
    slope.scatter_add_(
        1, wanted, slope.new_full((), smoothing - 1.0).expand_as(wanted)
    )  # d loss / d logits = softmax - one-hot
    if smoothing:
        slope.sub_(smoothing / slope.shape[1])
    if weights is not None:
        slope.mul_(weights.unsqueeze(1))
    return entropy, smooth


_NO_GRADIENTS = (None,) * 4
