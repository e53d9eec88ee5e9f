"""Fixed position vectors of grid cells."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from captioner.errors import CaptionerError


@lru_cache(maxsize=8)
def sinusoidal_positions(rows: int, columns: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sines and cosines of a cell's row (first half of a vector) and column (second half), (rows * columns, size).

    Each half is the encoding of Vaswani et al. 2017, section 3.5: component 2i is sin(index / 10000^(2i / half)), and
    2i + 1 is the cosine.

    Raises:
        CaptionerError: ``size`` is not divisible by 4.
    """
    if size % 4:
        raise CaptionerError(
            f"train.feature_size={size}: sinusoidal positions need a multiple of 4; choose one, or "
            "train.position=learned"
        )
    half = size // 2
    rates = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)  # (half / 2,)

    def encode(count: int) -> Tensor:  # -> (count, half)
        angles = torch.arange(count, dtype=torch.float64).unsqueeze(1) * rates
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

    grid = [
        encode(rows).unsqueeze(1).expand(rows, columns, half),
        encode(columns).unsqueeze(0).expand(rows, columns, half),
    ]
    return torch.cat(grid, -1).flatten(0, 1).to(device, dtype)
