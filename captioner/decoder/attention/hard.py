"""Stochastic hard attention (Xu et al. 2015, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.decoder.attention.additive import AdditiveAttention
from captioner.decoder.draws import draw
from captioner.decoder.packing import PackedStep

EXPECTED_SHARE = 0.5  # of the captions of a training step; section 4.1


class HardAttention(AdditiveAttention):
    """The context is the feature of one position; how likely each one is, soft additive attention says.

    While it is trained the position is drawn, s ~ Multinoulli(alpha), anew for every word. For half of the captions,
    drawn too, the context is its expected value instead, the sum of alpha * feature; Xu et al. do so to lower the
    variance. What reaches alpha's parameters through drawn positions is training's business
    (``captioner.training.reinforce``). A decoder that is not trained, or goes word by word, looks at the likeliest
    position.

    The weights are alpha in any case, not what was drawn from it: they are what a picture of the attention should show,
    and what the doubly stochastic penalty has a gradient for.
    """

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Query (I, K, A), keys (I, P, A), values (I, P, E) -> likeliest position's feature (I, K, E), weights alpha
        (I, K, P)."""
        weights = self.weights(query, keys)
        return _one_hot(weights.argmax(-1), weights) @ values, weights

    def expected(self, step: PackedStep, device: torch.device) -> Tensor:
        """Draw which captions of a step's block take expected values: (I_t, K_t) bool."""
        return torch.rand(step.images, step.slots, device=device) < EXPECTED_SHARE

    def draw(self, query: Tensor, keys: Tensor, values: Tensor, expected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``forward`` in training.

        Args:
            expected: (I, K) bool, True where the context is its expected value.

        Returns:
            Context (I, K, E), weights alpha (I, K, P), drawn positions (I, K) int64, -1 where the context is the
            expected value.
        """
        weights = self.weights(query, keys)
        positions = draw_positions(weights.detach())
        chosen = torch.where(expected.unsqueeze(-1), weights, _one_hot(positions, weights))
        return chosen @ values, weights, positions.masked_fill(expected, -1)


def draw_positions(weights: Tensor) -> Tensor:
    """Weights (I, K, P) -> for each row one position (I, K) int64, in float64."""
    return draw(weights.cumsum(-1, dtype=torch.float64)).squeeze(-1)


def _one_hot(positions: Tensor, weights: Tensor) -> Tensor:
    """Positions (I, K) -> (I, K, P) like ``weights``, 1 there and 0 elsewhere: a product with it has the same bytes at
    every run."""
    return torch.zeros_like(weights).scatter_(-1, positions.unsqueeze(-1), 1.0)
