"""Random captions and features of COCO's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captioner.batches import CaptionTable
from captioner.vocabulary.vocabulary import END, PAD, START

# words of 1,221 captions of COCO 2017, none cut: length -> captions
LENGTHS = {
    7: 10,
    8: 181,
    9: 256,
    10: 266,
    11: 202,
    12: 125,
    13: 74,
    14: 34,
    15: 19,
    16: 18,
    17: 14,
    18: 5,
    19: 5,
    20: 3,
    21: 5,
    22: 1,
    23: 1,
    26: 1,
    42: 1,
}
LONGEST = 30  # vocab.max_length


@dataclass(frozen=True)
class Sizes:
    """What the issue of the benchmark fixes; ``captions`` are spread over the images as evenly as can be."""

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
    share = np.array(list(LENGTHS.values())) / sum(LENGTHS.values())
    lengths = generator.choice(words, sizes.captions, p=share)  # (M,)
    place = np.arange(LONGEST + 2)  # START, words, END
    tokens = generator.integers(4, sizes.vocabulary, (sizes.captions + 1, LONGEST + 2))
    tokens[:, 0] = START
    tokens[:-1][place > lengths[:, None] + 1] = PAD
    tokens[np.arange(sizes.captions), lengths + 1] = END
    tokens[-1] = PAD
    return CaptionTable(np.arange(sizes.images), tokens, np.sort(np.arange(sizes.captions) % sizes.images))


def make_features(sizes: Sizes, device: torch.device) -> Tensor:
    """(N, 1, P, C) float16 between 0 and 1, drawn on the device."""
    features = torch.empty(sizes.images, 1, sizes.positions, sizes.channels, dtype=torch.float16, device=device)
    for part in features.split(1024):
        part.uniform_()
    return features
