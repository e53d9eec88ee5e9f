"""Small decoders and batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.vocabulary.vocabulary import END, START

VOCABULARY, CHANNELS, POSITIONS = 23, 11, 6


def make_decoder(decoder: str = "gru", attention: str = "soft", seed: int = 0, **changes: Any) -> Decoder:
    """A float64 decoder with random parameters, biases and norms too, and deterministic otherwise.

    It has no dropout, and with hard attention it is in eval mode.
    """
    torch.manual_seed(seed)
    settings = {
        "embedding_size": 5,
        "feature_size": 8,
        "hidden_size": 10,
        "attention_size": 6,
        "heads": 2,
        "rows": 2,
        "dropout": 0.0,
        **changes,
    }
    model = build_decoder(
        DecoderConfig(decoder, attention, VOCABULARY, channels=CHANNELS, positions=POSITIONS, **settings)
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.train(attention != "hard")


def make_tokens(lengths: list[list[int]], seed: int = 0) -> Tensor:
    """Captions (I, K, T + 1) of the given numbers of words; -1 is no caption."""
    generator = torch.Generator().manual_seed(seed)
    width = max(max(row) for row in lengths) + 2
    tokens = torch.zeros(len(lengths), max(map(len, lengths)), width, dtype=torch.int64)
    for i, row in enumerate(lengths):
        for k, length in enumerate(row):
            if length >= 0:
                words = torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
                tokens[i, k, : length + 2] = torch.tensor([START, *words, END])
    return tokens


def make_features(images: int, seed: int = 0) -> Tensor:
    return torch.randn(images, POSITIONS, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
