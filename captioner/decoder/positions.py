"""Fixed position vectors of grid cells and of words."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from captioner.errors import CaptionerError


def sinusoids(count: int, size: int) -> Tensor:
    """The encoding of the indices below ``count`` (Vaswani et al. 2017, section 3.5), (count, size) float64 on the CPU.

    Component 2i is sin(index / 10000^(2i / size)), and 2i + 1 is the cosine; ``size`` is even.
    """
    cpu = torch.device("cpu")  # also where torch's default is another device, as while a model is loaded
    rates = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64, device=cpu) / size)  # (size / 2,)
    angles = torch.arange(count, dtype=torch.float64, device=cpu).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


@lru_cache(maxsize=8)
def sinusoidal_positions(rows: int, columns: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``sinusoids`` of a cell's row (first half of a vector) and column (second half), (rows * columns, size).

    Raises:
        CaptionerError: ``size`` is not divisible by 4.
    """
    if size % 4:
        raise CaptionerError(
            f"train.feature_size={size}: sinusoidal positions need a multiple of 4; choose one, or "
            "train.position=learned"
        )
    half = size // 2
    grid = [
        sinusoids(rows, half).unsqueeze(1).expand(rows, columns, half),
        sinusoids(columns, half).unsqueeze(0).expand(rows, columns, half),
    ]
    return torch.cat(grid, -1).flatten(0, 1).to(device, dtype)


@lru_cache(maxsize=8)
def sinusoidal_word_positions(count: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``sinusoids`` of the positions of a caption's words, (count, size).

    Raises:
        CaptionerError: ``size`` is odd.
    """
    if size % 2:
        raise CaptionerError(
            f"train.hidden_size={size}: sinusoidal word positions need an even size; choose one, or "
            "train.word_position=learned"
        )
    return sinusoids(count, size).to(device, dtype)
