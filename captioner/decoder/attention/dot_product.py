"""Attention whose scores are products of query and key: scaled dot product, bilinear, several heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.decoder.attention.base import Attention, softmax
from captioner.decoder.config import DecoderConfig
from captioner.errors import CaptionerError


class DotAttention(Attention):
    """score = query . key / sqrt(A) (Luong et al. 2015, section 3.1, scaled as in Vaswani et al. 2017, 3.2.1)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.attention_size)
        self.key = nn.Linear(config.feature_size, config.attention_size, bias=False)  # the query has a bias

    def keys(self, values: Tensor) -> Tensor:
        """Projected features (I, P, E) -> keys (I, P, A)."""
        return self.key(values)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attention``."""
        query = self.query(hidden)
        weights = softmax(query @ keys.transpose(1, 2) / query.shape[-1] ** 0.5)
        return weights @ values, weights


class BilinearAttention(Attention):
    """score = h W a, the "general" score of Luong et al. 2015, section 3.1: the features are the keys."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.feature_size)

    def keys(self, values: Tensor) -> Tensor:
        """The features themselves, (I, P, E)."""
        return values

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attention``."""
        weights = softmax(self.query(hidden) @ keys.transpose(1, 2))
        return weights @ values, weights


class MultiHeadAttention(Attention):
    """Scaled dot-product attention of N heads, each on its part of query, key, value (Vaswani et al. 2017, 3.2.2).

    Raises:
        CaptionerError: the heads do not divide the sizes.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, self.size, self.heads = config.feature_size, config.attention_size, config.heads
        for name, size in (("attention_size", self.size), ("feature_size", width)):
            if size % self.heads:
                raise CaptionerError(
                    f"train.heads={self.heads}: it does not divide train.{name}={size}; choose another of them"
                )
        self.query = nn.Linear(config.hidden_size, self.size)
        self.key = nn.Linear(width, self.size, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """Projected features (I, P, E) -> keys and values of all heads side by side, (I, P, A + E)."""
        return torch.cat([self.key(values), self.value(values)], -1)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attention``; the weights are the mean of the heads'."""
        query = self._split(self.query(hidden))  # (I, N, K, A / N)
        # (I, N, P, A / N), (I, N, P, E / N)
        keys, values = map(self._split, keys.split((self.size, values.shape[-1]), -1))
        weights = softmax(query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5)  # (I, N, K, P)
        return self.output((weights @ values).transpose(1, 2).flatten(2)), weights.mean(1)

    def _split(self, rows: Tensor) -> Tensor:
        """(I, R, S) -> (I, N, R, S / N)."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
