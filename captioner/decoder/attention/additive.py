"""Soft additive attention (Bahdanau et al. 2015, section 3.1; Xu et al. 2015, section 4.2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioner.decoder.config import DecoderConfig

_CACHE_BYTES = 1 << 20  # of a core


class AdditiveAttention(nn.Module):
    """score = v . tanh(key + query), weights = softmax over positions, context = weighted sum of the projected
    features.

    The keys belong to the picture and are computed once; the query is a product of h that the decoder computes together
    with the cell's own. K hypotheses of a picture are a dimension of the query: its keys and features are never
    repeated.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size = self.query_size = config.attention_size
        self.key = nn.Linear(config.feature_size, size, bias=False)  # the query has a bias
        self.score = nn.Parameter(torch.empty(size).uniform_(-1, 1) * (3 / size) ** 0.5)

    def keys(self, values: Tensor) -> Tensor:
        """Projected features (I, P, E) -> keys (I, P, A)."""
        return self.key(values)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Query (I, K, A), keys (I, P, A), values (I, P, E) -> context (I, K, E), weights (I, K, P)."""
        weights = self.weights(query, keys)
        return weights @ values, weights

    def weights(self, query: Tensor, keys: Tensor) -> Tensor:
        """Query (I, K, A), keys (I, P, A) -> weights (I, K, P)."""
        return torch.softmax(_TanhScores.apply(query, keys, self.score), -1)


class _TanhScores(torch.autograd.Function):
    """v . tanh(key + query), some pictures at a time and with nothing of size (I, K, P, A) kept for the backward pass.

    The sum and its tanh are computed twice, in a buffer that stays in the processor's cache. Keeping them for every
    step is slower: they would be the step's largest tensors and come back from main memory.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, score: Tensor) -> Tensor:
        ctx.save_for_backward(query, keys, score)
        scores, buffer = query.new_empty(*query.shape[:2], keys.shape[1]), _buffer(query, keys)
        for first in range(0, len(query), len(buffer)):
            part = slice(first, first + len(buffer))
            torch.matmul(_units(query[part], keys[part], buffer), score, out=scores[part])
        return scores  # (I, K, P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, keys, score = ctx.saved_tensors
        buffer = _buffer(query, keys)
        query_gradient, key_gradient, score_gradient = (
            torch.empty_like(query),
            torch.empty_like(keys),
            torch.zeros_like(score),
        )
        for first in range(0, len(query), len(buffer)):
            part = slice(first, first + len(buffer))
            units, upstream = _units(query[part], keys[part], buffer), gradient[part]
            score_gradient += upstream.reshape(-1) @ units.view(-1, units.shape[-1])
            torch.ops.aten.tanh_backward.grad_input(
                upstream.unsqueeze(-1), units, grad_input=units
            )  # gradient * (1 - units^2)
            torch.sum(units, 2, out=query_gradient[part])
            torch.sum(units, 1, out=key_gradient[part])
        return query_gradient.mul_(score), key_gradient.mul_(score), score_gradient


def _units(query: Tensor, keys: Tensor, buffer: Tensor) -> Tensor:
    """tanh(key + query) in the buffer's first rows: (I, K, A), (I, P, A) -> (I, K, P, A)."""
    return torch.add(keys.unsqueeze(1), query.unsqueeze(2), out=buffer[: len(query)]).tanh_()


def _buffer(query: Tensor, keys: Tensor) -> Tensor:
    """Room (J, K, P, A) for some pictures: what fits into the cores' second caches; on a GPU all."""
    shape = (query.shape[1], keys.shape[1], keys.shape[2])
    images = len(query)
    if query.device.type == "cpu":
        images = min(images, _CACHE_BYTES * torch.get_num_threads() // (math.prod(shape) * query.element_size()))
    return query.new_empty(max(1, images), *shape)
