"""No attention: the mean feature at every step."""

from __future__ import annotations

from torch import Tensor

from captioner.decoder.attention.base import Attention
from captioner.decoder.config import DecoderConfig


class MeanFeature(Attention):
    """The mean of the projected features, with the same weight on every position."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()

    def keys(self, values: Tensor) -> Tensor:
        """None are needed: (I, P, E) -> (I, P, 0)."""
        return values[:, :, :0]

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attention``."""
        images, captions, positions = hidden.shape[0], hidden.shape[1], values.shape[1]
        context = mean.unsqueeze(1).expand(images, captions, mean.shape[1])
        return context, mean.new_full((), 1 / positions).expand(images, captions, positions)
