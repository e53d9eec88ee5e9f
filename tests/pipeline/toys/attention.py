"""A toy attention mechanism: all weight on position 0."""

from __future__ import annotations

from torch import Tensor

from captioner.decoder.attention import Attention
from captioner.decoder.config import DecoderConfig


class FirstPosition(Attention):
    """The feature of position 0, whatever the hidden state is."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()

    def keys(self, values: Tensor) -> Tensor:
        """None are needed: (I, P, E) -> (I, P, 0)."""
        return values[:, :, :0]

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attention``."""
        images, captions = hidden.shape[:2]
        weights = values.new_zeros(images, captions, values.shape[1])
        weights[:, :, 0] = 1
        return values[:, :1].expand(images, captions, -1), weights
