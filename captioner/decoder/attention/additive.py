"""Soft additive attention (Bahdanau et al. 2015, section 3.1; Xu et al. 2015, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.decoder.attention.base import Attention, softmax
from captioner.decoder.config import DecoderConfig


class AdditiveAttention(Attention):
    """score = v . tanh(key + query); the weights are a softmax over positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size = config.attention_size
        self.query = nn.Linear(config.hidden_size, size)
        self.key = nn.Linear(config.feature_size, size, bias=False)  # the query has a bias
        self.score = nn.Linear(size, 1, bias=False)  # a softmax does not see a bias
        nn.init.uniform_(self.score.weight, -((3 / size) ** 0.5), (3 / size) ** 0.5)

    def keys(self, values: Tensor) -> Tensor:
        """Projected features (I, P, E) -> keys (I, P, A)."""
        return self.key(values)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attention``."""
        weights = self.weights(hidden, keys)
        return weights @ values, weights

    def weights(self, hidden: Tensor, keys: Tensor) -> Tensor:
        """Hidden (I, K, H), keys (I, P, A) -> weights (I, K, P)."""
        units = torch.tanh(keys.unsqueeze(1) + self.query(hidden).unsqueeze(2))  # (I, K, P, A)
        return softmax(self.score(units).squeeze(-1))
