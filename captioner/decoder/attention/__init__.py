"""Ways to sum up the grid of a picture at one step, by the name that ``attention`` has in the parameters."""

from __future__ import annotations

from captioner.decoder.attention.additive import AdditiveAttention
from captioner.decoder.attention.mean import MeanFeature
from captioner.errors import CaptionerError

ATTENTIONS = {"soft": AdditiveAttention, "none": MeanFeature}


def build_attention(name: str, feature_size: int, attention_size: int) -> AdditiveAttention | MeanFeature:
    """The attention called ``name``.

    Raises:
        CaptionerError: there is none.
    """
    if name not in ATTENTIONS:
        raise CaptionerError(f"attention={name}: no such attention; it must be one of {', '.join(ATTENTIONS)}")
    return ATTENTIONS[name](feature_size, attention_size)


__all__ = ["ATTENTIONS", "AdditiveAttention", "MeanFeature", "build_attention"]
