"""Attention mechanisms by the name that ``attention`` has in the parameters; a new one is one file and its row here."""

from __future__ import annotations

from collections.abc import Callable

from captioner.decoder.attention.additive import AdditiveAttention
from captioner.decoder.attention.base import Attention
from captioner.decoder.attention.dot_product import BilinearAttention, DotAttention, MultiHeadAttention
from captioner.decoder.attention.hard import HardAttention
from captioner.decoder.attention.mean import MeanFeature
from captioner.decoder.config import DecoderConfig
from captioner.errors import CaptionerError

ATTENTIONS: dict[str, Callable[[DecoderConfig], Attention]] = {
    "soft": AdditiveAttention,
    "hard": HardAttention,
    "dot": DotAttention,
    "multihead": MultiHeadAttention,
    "bilinear": BilinearAttention,
    "none": MeanFeature,
}


def build_attention(config: DecoderConfig) -> Attention:
    """The attention mechanism called ``config.attention``.

    Raises:
        CaptionerError: an unknown name, or sizes that do not fit together.
    """
    if config.attention not in ATTENTIONS:
        raise CaptionerError(
            f"attention={config.attention}: no such attention; it must be one of {', '.join(ATTENTIONS)}"
        )
    return ATTENTIONS[config.attention](config)


__all__ = ["ATTENTIONS", "Attention", "HardAttention", "build_attention"]
