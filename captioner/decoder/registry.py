"""The decoders by the name that ``decoder`` has in the parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from captioner.decoder.cells import GRU, LSTM
from captioner.decoder.config import DecoderConfig
from captioner.decoder.protocol import Decoder
from captioner.decoder.recurrent import RecurrentDecoder
from captioner.decoder.transformer import TransformerDecoder
from captioner.errors import CaptionerError

DECODERS: dict[str, Callable[[DecoderConfig, Tensor | None], Decoder]] = {
    "gru": lambda config, embeddings: RecurrentDecoder(config, GRU, embeddings),
    "lstm": lambda config, embeddings: RecurrentDecoder(config, LSTM, embeddings),
    "transformer": TransformerDecoder,
}


def build_decoder(config: DecoderConfig, embeddings: Tensor | None = None) -> Decoder:
    """The decoder that ``config`` describes, with freshly drawn weights (torch's global generator).

    Args:
        embeddings: (V, D') word vectors; None: random ones, to be loaded or trained.

    Raises:
        CaptionerError: an unknown name, or sizes that do not fit together.
        ValueError: ``embeddings`` has another shape than the settings say.
    """
    if config.decoder not in DECODERS:
        raise CaptionerError(f"decoder={config.decoder}: no such decoder; it must be one of {', '.join(DECODERS)}")
    return DECODERS[config.decoder](config, embeddings)
