"""Caption decoders: see ``protocol`` for what they do, ``registry`` for their names."""

from captioner.decoder.config import DecoderConfig
from captioner.decoder.protocol import Decoder, Memory, State, unmasked
from captioner.decoder.registry import DECODERS, build_decoder

__all__ = ["DECODERS", "Decoder", "DecoderConfig", "Memory", "State", "build_decoder", "unmasked"]
