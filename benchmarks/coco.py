"""Random data of COCO's shape and size, and the decoder that the benchmarks of training train on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captioner.batches import CaptionTable
from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.features.readers import FeatureReader
from captioner.parameters import TrainParameters
from captioner.vocabulary.vocabulary import END, PAD, START

# tokens of 600 captions of COCO 2017, without START and END: length -> captions
LENGTHS = {
    7: 5,
    8: 98,
    9: 132,
    10: 121,
    11: 91,
    12: 61,
    13: 38,
    14: 20,
    15: 8,
    16: 8,
    17: 9,
    18: 1,
    19: 3,
    20: 1,
    21: 3,
    41: 1,
}
LONGEST = 30  # vocab.max_length: longer captions are cut, as training cuts them
VECTOR_SIZE = 50  # of a word


@dataclass(frozen=True)
class Sizes:
    """COCO 2014's training split; ``captions`` are spread over the images as evenly as possible."""

    images: int = 82_783
    captions: int = 414_113
    positions: int = 49
    channels: int = 2048
    vocabulary: int = 9500
    hidden: int = 512


def make_table(sizes: Sizes) -> CaptionTable:
    """Random captions whose lengths are distributed as COCO's; always the same."""
    generator = np.random.default_rng(0)
    words = np.minimum(list(LENGTHS), LONGEST)
    probabilities = np.array(list(LENGTHS.values())) / sum(LENGTHS.values())
    lengths = generator.choice(words, sizes.captions, p=probabilities)  # (M,)
    column = np.arange(LONGEST + 2)  # START, words, END
    tokens = generator.integers(4, sizes.vocabulary, (sizes.captions + 1, LONGEST + 2))
    tokens[:, 0] = START
    tokens[:-1][column > lengths[:, None] + 1] = PAD
    tokens[np.arange(sizes.captions), lengths + 1] = END
    tokens[-1] = PAD
    return CaptionTable(np.arange(sizes.images), tokens, np.sort(np.arange(sizes.captions) % sizes.images))


def make_features(sizes: Sizes, device: torch.device) -> Tensor:
    """(N, 1, P, C) float16 between 0 and 1, drawn on the device."""
    features = torch.empty(sizes.images, 1, sizes.positions, sizes.channels, dtype=torch.float16, device=device)
    for part in features.split(1024):
        part.uniform_()
    return features


class RandomReader(FeatureReader):
    """Random features between 0 and 1 for whatever is asked for."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        super().__init__((sizes.images, 1, sizes.positions, sizes.channels), device)
        self._generator = torch.Generator().manual_seed(0)

    def _gather(self, flat: np.ndarray) -> Tensor:
        return torch.rand(len(flat), *self.shape[2:], generator=self._generator).half().to(self.device)


def make_decoder(sizes: Sizes, options: TrainParameters, device: torch.device) -> Decoder:
    """An LSTM with soft attention; its weights are always the same."""
    torch.manual_seed(0)
    config = DecoderConfig(
        decoder="lstm",
        attention="soft",
        vocabulary_size=sizes.vocabulary,
        embedding_size=VECTOR_SIZE,
        channels=sizes.channels,
        positions=sizes.positions,
        feature_size=options.feature_size,
        hidden_size=sizes.hidden,
        attention_size=options.attention_size,
        dropout=options.dropout,
    )
    return build_decoder(config).to(device).train()
