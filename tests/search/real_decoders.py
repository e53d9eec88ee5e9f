"""Decoders of ``captioner.decoder`` with random weights that give varied captions."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.beam import SharpDecoder
from captioner.decoder import DecoderConfig, build_decoder
from captioner.decoder.protocol import Decoder
from captioner.search import beam_search
from captioner.vocabulary.vocabulary import START

POSITIONS, CHANNELS = 9, 20


@torch.no_grad()
def sharp_decoder(
    cell: str,
    attention: str,
    dtype: torch.dtype = torch.float64,
    vocabulary: int = 700,
    sharpness: float = 12.0,
    seed: int = 0,
    **shape: Any,
) -> SharpDecoder:
    """A small decoder in eval mode whose greedy captions have some 6 tokens.

    Random weights alone give nearly uniform distributions and captions as long as allowed. Each weight is drawn from
    its name, whatever the order of the layers.
    """
    config = DecoderConfig(
        decoder=cell,
        attention=attention,
        vocabulary_size=vocabulary,
        embedding_size=12,
        channels=CHANNELS,
        positions=POSITIONS,
        feature_size=16,
        hidden_size=24,
        attention_size=16,
        **shape,
    )
    decoder = build_decoder(config)
    for name, parameter in decoder.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        if parameter.dim() > 1:
            parameter.copy_(drawn * 1.5 / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(drawn * 0.03)
    sharp = SharpDecoder(decoder, sharpness).eval().double()
    features, low, high = random_features(32), 0.0, 100.0
    for _ in range(10):
        sharp.end = (low + high) / 2
        lengths = [len(best.tokens) for [best] in beam_search(sharp, features, 1, max_length=15)]
        low, high = (sharp.end, high) if sum(lengths) > 6 * len(lengths) else (low, sharp.end)
    return sharp.to(dtype)


def random_features(count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """(I, P, C)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, POSITIONS, CHANNELS, generator=generator, dtype=dtype)


def stepped_log_probabilities(decoder: Decoder, features: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Log-probabilities (T + 1, V) after each prefix of a caption of one image, features (1, P, C), step by step."""
    memory = decoder.encode(features)
    state, rows = decoder.initial_state(memory, 1), []
    for token in (START, *tokens):
        logits, state, _ = decoder.step(torch.tensor([[token]]), state, memory)
        rows.append(logits[0, 0].log_softmax(-1))
    return torch.stack(rows)
