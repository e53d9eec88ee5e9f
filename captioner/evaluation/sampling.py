"""Images sampled at random, to be shown: never picked for their captions."""

from __future__ import annotations

import random
from collections.abc import Sequence


def sample_images(image_ids: Sequence[int], count: int, seed: int = 1) -> list[int]:
    """``count`` images, or all where there are fewer, drawn from ``seed`` and the ids alone, so that every experiment
    shows the same."""
    return random.Random(seed).sample(sorted(image_ids), min(count, len(image_ids)))
