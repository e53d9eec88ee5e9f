"""No attention: the mean feature at every step."""

from __future__ import annotations

from torch import Tensor, nn

from captioner.decoder.config import DecoderConfig


class MeanFeature(nn.Module):
    """The mean of the projected features (still gated by the decoder), with the same weight on every position."""

    query_size = 0

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()

    def keys(self, values: Tensor) -> Tensor:
        """None are needed: (I, P, E) -> (I, P, 0)."""
        return values[:, :, :0]

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Query (I, K, 0), mean (I, E) -> context (I, K, E), weights (I, K, P)."""
        images, hypotheses, positions = query.shape[0], query.shape[1], values.shape[1]
        context = mean.unsqueeze(1).expand(images, hypotheses, mean.shape[1])
        return context, mean.new_full((), 1 / positions).expand(images, hypotheses, positions)
