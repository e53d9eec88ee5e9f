"""Ways to sum up the grid of a picture at one step, by the name that ``attention`` has in the parameters."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from captioner.decoder.attention.additive import AdditiveAttention
from captioner.decoder.attention.hard import HardAttention
from captioner.decoder.attention.mean import MeanFeature
from captioner.decoder.attention.products import BilinearAttention, DotAttention, MultiHeadAttention
from captioner.decoder.config import DecoderConfig
from captioner.errors import CaptionerError

ATTENTIONS = {
    "soft": AdditiveAttention,
    "hard": HardAttention,
    "dot": DotAttention,
    "multihead": MultiHeadAttention,
    "bilinear": BilinearAttention,
    "none": MeanFeature,
}


class Attention(Protocol):
    """What the decoder asks of an attention, a module of I pictures, K hypotheses and P positions.

    Attributes:
        query_size: Q, of the query that the decoder computes from h together with the cell's own product; may be 0.

    One that draws while it is trained has a method ``draw`` too (``HardAttention``).
    """

    query_size: int

    def keys(self, values: Tensor) -> Tensor:
        """What is computed once a picture: projected features (I, P, E) -> (I, P, anything)."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Query (I, K, Q), keys, values (I, P, E), mean (I, E) -> context (I, K, E), weights (I, K, P) that add up to
        1."""


def build_attention(config: DecoderConfig) -> Attention:
    """The attention called ``config.attention``.

    Raises:
        CaptionerError: there is none, or the sizes do not fit it.
    """
    if config.attention not in ATTENTIONS:
        raise CaptionerError(
            f"attention={config.attention}: no such attention; it must be one of {', '.join(ATTENTIONS)}"
        )
    return ATTENTIONS[config.attention](config)


__all__ = ["ATTENTIONS", "Attention", "HardAttention", "build_attention"]
