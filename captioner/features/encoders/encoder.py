"""An encoder: a network cut at its last spatial map, frozen, with the normalisation that its inputs need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from captioner.errors import CaptionerError
from captioner.features.layout import MEAN, STD

FINAL, LAST_STAGE = "final", "last_stage"
"""Values of ``extract.layer``."""


def layer_option(layer: str) -> str:
    """The ``extract.layer`` of features or a model that state ``Encoder.layer``."""
    return LAST_STAGE if layer == LAST_STAGE else FINAL


class Cut(NamedTuple):
    """A network cut at one of its last maps."""

    body: nn.Module  # computes the map; its parameters keep the names they had in the whole network
    # the module of the network, or the operation in one of its modules, whose output is the map; or LAST_STAGE
    layer: str
    feature_map: Callable[[nn.Module, Tensor], Tensor]  # of the body and normalised images (B, 3, S, S): (B, C, H, W)
    activations: int  # numbers held at once for one image of 224x224, roughly


@dataclass(frozen=True)
class InputSpec:
    """What images an encoder was trained on.

    Attributes:
        image_size: side of the square input in pixels.
        mean, std: of the RGB images, values from 0 to 1; inputs are normalised with them.
        resample: bilinear, bicubic or another filter of Pillow, in lower case.
        crop_pct: the central part of the image that the encoder sees, as a fraction of its width and height.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    resample: str = "bilinear"
    crop_pct: float = 1.0


class Published(NamedTuple):
    """Published weights (``extract.weights=pretrained``): where they are fetched from, and where they lie then."""

    url: str
    path: Path | None  # None: not here yet, and under a name that their server decides
    license: str | None


class Encoder(nn.Module):
    """A frozen encoder in eval mode.

    Attributes:
        name: as in ``encoder`` of params.yaml.
        layer, activations: as in ``Cut``.
        channels: C.
        map: ``(rows, columns)`` of the encoder's own feature map.
        grid: ``(rows, columns)`` of what ``forward`` returns, P = rows * columns.
        spec: the images that it takes.
        weights_name: bundled, imagenet, pretrained, package, random or file.
        weights_sha256: SHA-256 (hex) of the encoder's weights as float32, whatever file they came from.
        weights_license: of the weights, as their publisher states it; None where nothing is stated.
    """

    def __init__(self, name: str, cut: Cut, pool: int | str, spec: InputSpec | None = None) -> None:
        super().__init__()
        self.name, self.body, self.layer, self.activations = name, cut.body, cut.layer, cut.activations
        self._feature_map, self._pool = cut.feature_map, pool
        self.spec = spec or InputSpec()
        self.channels = 0
        self.map = self.grid = (0, 0)
        self.weights_name = self.weights_sha256 = ""
        self.weights_license: str | None = None
        self.eval().requires_grad_(False)

    def feature_map(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, 3, S, S)`` -> the encoder's own map ``(B, C, H, W)``."""
        return self._feature_map(self.body, images)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, 3, S, S)`` -> features ``(B, P, C)``, positions row by row."""
        features = self.feature_map(images)
        if self._pool != "native":
            # a map that is coarser than the grid is never enlarged
            size = (min(int(self._pool), features.shape[2]), min(int(self._pool), features.shape[3]))
            if size != tuple(features.shape[2:]):
                features = F.adaptive_avg_pool2d(features.float(), size)
        return features.flatten(2).transpose(1, 2)


def check_grid(grid: int | str) -> int | str:
    """``grid`` if it is one: a positive whole number, or ``native``.

    Raises:
        CaptionerError: anything else.
    """
    if grid == "native" or (isinstance(grid, int) and not isinstance(grid, bool) and grid >= 1):
        return grid
    raise CaptionerError(f"extract.grid={grid!r}: it must be a whole number of at least 1, or native")
