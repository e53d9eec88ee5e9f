"""Encoders by name. A family is one module with a row in ``FAMILIES``.

* ``torchvision``: every torchvision classifier, by its name.
* ``timm``: ``timm/NAME``, every model of timm that has a map or a square number of patch tokens.
"""

from __future__ import annotations

import difflib
from typing import Protocol

import torch

from captioner.errors import CaptionerError
from captioner.features.encoders import timm, torchvision
from captioner.features.encoders.encoder import FINAL, Encoder, InputSpec, Published, check_grid, layer_option
from captioner.features.encoders.weights import weights_name

__all__ = [
    "FAMILIES",
    "Encoder",
    "Family",
    "InputSpec",
    "build_encoder",
    "check_grid",
    "default_image_size",
    "known_encoders",
    "layer_option",
    "published_weights",
    "weights_name",
]


class Family(Protocol):
    """What a module of encoders offers."""

    def names(self) -> list[str]:
        """Names of its encoders, none of another family."""
        ...

    def owns(self, name: str) -> bool:
        """Whether a name, right or mistyped, is of this family."""
        ...

    def image_size(self, name: str) -> int:
        """Side of the input in pixels where ``extract.image_size`` says none.

        Raises:
            CaptionerError: no such encoder.
        """
        ...

    def build(self, name: str, weights: str, seed: int, grid: int | str, image_size: int, layer: str) -> Encoder:
        """An encoder with its weights, their name, hash and licence, and ``spec``.

        ``build_encoder`` finds out map, grid and channels.
        """
        ...

    def published(self, name: str) -> Published:
        """Where the weights come from that ``extract.weights=pretrained`` means.

        Raises:
            CaptionerError: no such encoder, or there are none.
        """
        ...


FAMILIES: tuple[Family, ...] = (torchvision, timm)


def known_encoders() -> list[str]:
    """Names of all encoders, sorted. Imports timm, which has some 3,000."""
    return sorted(name for family in FAMILIES for name in family.names())


def default_image_size(name: str) -> int:
    """Side of an encoder's input in pixels where ``extract.image_size`` is null.

    Raises:
        CaptionerError: no such encoder; the nearest is named.
    """
    return _family(name).image_size(name)


def published_weights(name: str) -> Published:
    """Where the weights come from that ``extract.weights=pretrained`` means.

    Raises:
        CaptionerError: no such encoder (the nearest is named), or there are none.
    """
    return _family(name).published(name)


def build_encoder(
    name: str,
    weights: str = "random",
    seed: int = 1,
    grid: int | str = "native",
    image_size: int | None = None,
    layer: str = FINAL,
) -> Encoder:
    """A frozen encoder by its name.

    Args:
        weights: bundled, pretrained (or imagenet), package, random, or the path of a state dict or of a folder of
            ``<name>.pth|.safetensors``.
        seed: of random weights.
        grid: pool the map to ``grid x grid`` by adaptive averages; a map that is coarser keeps its size. ``native``: no
            pooling.
        image_size: side of the input in pixels; None: the encoder's own.
        layer: ``final``, or ``last_stage`` of an encoder of timm, as in ``extract.layer``.

    Raises:
        CaptionerError: the name is unknown (the nearest is named), the weights do not load or do not fit, or the
            encoder takes no images of this size.
    """
    check_grid(grid)
    family = _family(name)
    own = family.image_size(name)
    side = image_size or own
    encoder = family.build(name, weights, seed, grid, side, layer)
    try:
        with torch.inference_mode():
            features = encoder.feature_map(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise CaptionerError(
            f"encoder={name} takes no images of {side}x{side} pixels; use extract.image_size={own}"
        ) from error
    encoder.channels, encoder.map = features.shape[1], (features.shape[2], features.shape[3])
    encoder.grid = encoder.map if grid == "native" else (min(int(grid), encoder.map[0]), min(int(grid), encoder.map[1]))
    return encoder


def _family(name: str) -> Family:
    family = next((family for family in FAMILIES if family.owns(name)), None)
    if family is None:
        near = difflib.get_close_matches(name.lower(), torchvision.names(), n=1, cutoff=0.4)
        raise CaptionerError(
            f"encoder={name}: torchvision has no such classifier"
            + (f"; did you mean {near[0]}?" if near else f"; it has {', '.join(torchvision.names())}")
            + ("" if near else "; timm's models are timm/NAME")
        )
    return family
