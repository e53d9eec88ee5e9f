"""Encoders by name. A family is one module with a row in ``FAMILIES``."""

from __future__ import annotations

import difflib
from typing import Protocol

import torch

from captioner.errors import CaptionerError
from captioner.features.encoders import torchvision
from captioner.features.encoders.encoder import Encoder, check_grid

__all__ = ["FAMILIES", "Encoder", "Family", "build_encoder", "check_grid", "known_encoders"]


class Family(Protocol):
    """What a module of encoders offers."""

    def names(self) -> list[str]:
        """Names of its encoders, none of another family."""
        ...

    def build(self, name: str, weights: str, seed: int, grid: int | str) -> Encoder:
        """An encoder with its weights and ``mean`` and ``std``; ``build_encoder`` finds out map, grid and channels."""
        ...


FAMILIES: tuple[Family, ...] = (torchvision,)


def known_encoders() -> list[str]:
    """Names of all encoders, sorted."""
    return sorted(name for family in FAMILIES for name in family.names())


def build_encoder(
    name: str, weights: str = "random", seed: int = 1, grid: int | str = "native", image_size: int = 224
) -> Encoder:
    """A frozen encoder by its name.

    Args:
        weights: bundled, imagenet, random, or the path of a state dict or of a folder of ``<name>.pth|.safetensors``.
        seed: of random weights.
        grid: pool the map to ``grid x grid`` by adaptive averages; a map that is coarser keeps its size. ``native``: no
            pooling.
        image_size: side of the input in pixels.

    Raises:
        CaptionerError: the name is unknown (the nearest is named), the weights do not load or do not fit, or the
            encoder takes no images of this size.
    """
    check_grid(grid)
    family = next((family for family in FAMILIES if name in family.names()), None)
    if family is None:
        near = difflib.get_close_matches(name.lower(), known_encoders(), n=1, cutoff=0.4)
        raise CaptionerError(
            f"encoder={name}: torchvision has no such classifier"
            + (f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known_encoders())}")
        )
    encoder = family.build(name, weights, seed, grid)
    try:
        with torch.inference_mode():
            features = encoder.feature_map(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise CaptionerError(
            f"encoder={name} takes no images of {image_size}x{image_size} pixels; use extract.image_size=224"
        ) from error
    encoder.channels, encoder.map = features.shape[1], (features.shape[2], features.shape[3])
    encoder.grid = encoder.map if grid == "native" else (min(int(grid), encoder.map[0]), min(int(grid), encoder.map[1]))
    return encoder
