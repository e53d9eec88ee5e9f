"""Caption decoders: recurrent cells with attention over a grid of features."""

from __future__ import annotations

from torch import Tensor

from captioner.decoder.config import DecoderConfig
from captioner.decoder.memory import Memory, State, TeacherForced
from captioner.decoder.model import CaptionDecoder


def build_decoder(config: DecoderConfig, embeddings: Tensor | None = None) -> CaptionDecoder:
    """The decoder that ``config`` describes, with freshly drawn weights (torch's global generator).

    Args:
        embeddings: (V, D') word vectors; None: random ones.

    Raises:
        CaptionerError: a name that there is not, or sizes that do not fit.
        ValueError: ``embeddings`` has another shape than the settings say.
    """
    return CaptionDecoder(config, embeddings)


__all__ = ["CaptionDecoder", "DecoderConfig", "Memory", "State", "TeacherForced", "build_decoder"]
