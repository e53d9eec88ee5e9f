"""Attention whose scores are products of query and key: scaled dot, bilinear, several heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.decoder.config import DecoderConfig
from captioner.errors import CaptionerError


class DotAttention(nn.Module):
    """score = query . key / sqrt(A) (Luong et al. 2015, section 3.1, with the scale of Vaswani et al. 2017, section
    3.2.1)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.query_size = config.attention_size
        self.key = nn.Linear(config.feature_size, config.attention_size, bias=False)  # the query has a bias

    def keys(self, values: Tensor) -> Tensor:
        """Projected features (I, P, E) -> keys (I, P, A)."""
        return self.key(values)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Query (I, K, A), keys (I, P, A), values (I, P, E) -> context (I, K, E), weights (I, K, P)."""
        weights = torch.softmax(query @ keys.transpose(1, 2) / self.query_size**0.5, -1)
        return weights @ values, weights


class BilinearAttention(nn.Module):
    """score = h W a, the "general" score of Luong et al. 2015, section 3.1.

    The query W h has the features' size, and the features are the keys.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.query_size = config.feature_size

    def keys(self, values: Tensor) -> Tensor:
        """The features themselves, (I, P, E)."""
        return values

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Query (I, K, E), keys (I, P, E), values (I, P, E) -> context (I, K, E), weights (I, K, P)."""
        weights = torch.softmax(query @ keys.transpose(1, 2), -1)
        return weights @ values, weights


class MultiHeadAttention(nn.Module):
    """Scaled dot attention of several heads, each on its own share of query, key and value (Vaswani et al. 2017,
    section 3.2.2).

    Raises:
        CaptionerError: the heads do not divide the sizes.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, self.query_size, self.heads = config.feature_size, config.attention_size, config.heads
        for name, size in (("attention_size", self.query_size), ("feature_size", width)):
            if size % self.heads:
                raise CaptionerError(
                    f"train.heads={self.heads}: it does not divide train.{name}={size}; choose another of them"
                )
        self.key = nn.Linear(width, self.query_size, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """Projected features (I, P, E) -> keys and values of the heads side by side, (I, P, A + E)."""
        return torch.cat([self.key(values), self.value(values)], -1)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Query (I, K, A), keys (I, P, A + E), values (I, P, E) -> context (I, K, E), weights (I, K, P), the mean of
        the heads'."""
        query = self._split(query)  # (I, N, K, A / N)
        keys, values = map(
            self._split, keys.split((self.query_size, values.shape[-1]), -1)
        )  # (I, N, P, A / N), (I, N, P, E / N)
        weights = torch.softmax(query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5, -1)  # (I, N, K, P)
        return self.output((weights @ values).transpose(1, 2).flatten(2)), weights.mean(1)

    def _split(self, rows: Tensor) -> Tensor:
        """(I, R, S) -> (I, N, R, S / N)."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
