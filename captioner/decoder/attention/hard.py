"""Stochastic hard attention (Xu et al. 2015, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.decoder.attention.additive import AdditiveAttention
from captioner.decoder.categorical import draw
from captioner.decoder.config import DecoderConfig

EXPECTED_SHARE = 0.5  # of the captions in training; section 4.1


class HardAttention(AdditiveAttention):
    """The context is the feature of one position, whose probability alpha is that of soft additive attention.

    In training the position is drawn, s ~ Multinoulli(alpha), for every token. For half of the captions, drawn too,
    the context is its expected value instead, the sum of alpha * feature, which lowers the variance. What reaches the
    parameters of alpha through drawn positions is REINFORCE's gradient (``captioner.training.objectives.reinforce``).
    In evaluation the context is the feature of the most probable position.

    The weights returned are alpha, not the drawn position: alpha is what an image of the attention should show, and
    what the doubly stochastic penalty has a gradient for.

    Attributes:
        expected: (I, K) bool, captions that take expected values in the pass of teacher forcing at work.
        drawn: one (I', K') int64 a token of that pass: the position drawn, -1 where the expected value was taken.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.drawn: list[Tensor] = []
        self.expected: Tensor | None = None

    def start_sequence(self, tokens: Tensor) -> None:
        """Draw which captions take expected values."""
        self.drawn = []
        self.expected = torch.rand(tokens.shape[:2], device=tokens.device) < EXPECTED_SHARE if self.training else None

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attention``."""
        weights = self.weights(hidden, keys)  # (I, K, P)
        if self.expected is None or not self.training:
            return _one_hot(weights.argmax(-1), weights) @ values, weights
        positions = draw_positions(weights.detach())
        expected = self.expected[: hidden.shape[0], : hidden.shape[1]]  # where there still is a token
        self.drawn.append(positions.masked_fill(expected, -1))
        chosen = torch.where(expected.unsqueeze(-1), weights, _one_hot(positions, weights))
        return chosen @ values, weights

    def drawn_positions(self) -> Tensor:
        """The positions drawn in the last pass of teacher forcing, (I, K, T) int64; -1: the expected value, or none."""
        assert self.expected is not None, "positions are drawn in training alone"
        images, captions = self.expected.shape
        padded = [
            F.pad(drawn, (0, captions - drawn.shape[1], 0, images - len(drawn)), value=-1) for drawn in self.drawn
        ]
        return torch.stack(padded, 2)


def draw_positions(weights: Tensor) -> Tensor:
    """Weights (I, K, P) -> one position each, (I, K) int64, drawn in float64."""
    return draw(weights.cumsum(-1, dtype=torch.float64)).squeeze(-1)


def _one_hot(positions: Tensor, weights: Tensor) -> Tensor:
    """Positions (I, K) -> (I, K, P) like ``weights``; a product with it gives the same bytes at every run."""
    return torch.zeros_like(weights).scatter_(-1, positions.unsqueeze(-1), 1.0)
