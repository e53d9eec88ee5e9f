"""Extraction on a GPU: the CUDA graph, blocks of several views, faults, and going on after a stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.errors import CaptionerError
from captioner.features.encoders import build_encoder
from captioner.features.extract import extract
from captioner.features.forward import ImageEncoder
from captioner.features.store import FeatureStore
from captioner.features.verify import verify_features
from tests.features.conftest import ENCODER, make_images_file, quick, runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
ENCODERS = [ENCODER, "resnet18", "densenet121"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With batch_size=8 two whole blocks and a part of one."""
    return make_images_file(tmp_path_factory.mktemp("images") / "images.h5", 21)


def read(path: Path, view: int = 0) -> torch.Tensor:
    with FeatureStore.open(path).reader("disk") as reader:
        return reader.read(np.arange(21), np.full(21, view)).float()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_are_those_of_a_cpu(images: Path, tmp_path: Path, encoder: str) -> None:
    for device in ("cpu", "cuda"):
        extract(quick(views=2), runtime(device=device, workers=2), encoder, images, tmp_path / f"{device}.h5")
    assert verify_features(tmp_path / "cuda.h5") == []
    for view in range(2):
        expected = read(tmp_path / "cpu.h5", view)
        torch.testing.assert_close(
            read(tmp_path / "cuda.h5", view), expected, rtol=5e-3, atol=1e-3 * float(expected.abs().max())
        )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(images: Path, tmp_path: Path, precision: str) -> None:
    for chosen in ("fp32", precision):
        extract(quick(precision=chosen), runtime(device="cuda"), ENCODER, images, tmp_path / f"{chosen}.h5")
    exact, rounded = read(tmp_path / "fp32.h5"), read(tmp_path / f"{precision}.h5")
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_graph_gives_the_bytes_of_its_kernels(encoder: str, precision: str) -> None:
    encode = ImageEncoder(build_encoder(encoder, seed=1), torch.device("cuda"), precision)
    pixels = [torch.randint(256, (size, 64, 64, 3), dtype=torch.uint8, device="cuda") for size in (8, 8, 5)]
    launched = [encode.features(batch).clone() for batch in pixels]
    encode.record(8, 64)
    replayed = [encode.features(batch).clone() for batch in pixels]  # the last one is of another size and launched
    for expected, found in zip(launched, replayed):
        assert torch.equal(found, expected) and found.isfinite().all()
    assert not torch.equal(replayed[0], replayed[1])


def test_a_stopped_run_goes_on_with_the_same_bytes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(quick(views=3), runtime(device="cuda"), ENCODER, images, tmp_path / "whole.h5")
    features, calls = ImageEncoder.features, []

    def fails(self: ImageEncoder, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 5:  # the second view of the second block
            raise CaptionerError("stopped here")
        return features(self, pixels)

    with monkeypatch.context() as during:
        during.setattr(ImageEncoder, "features", fails)
        with pytest.raises(CaptionerError, match="stopped here"):
            extract(quick(views=3), runtime(device="cuda"), ENCODER, images, tmp_path / "parts.h5")
    extract(quick(views=3), runtime(device="cuda"), ENCODER, images, tmp_path / "parts.h5")
    assert (tmp_path / "parts.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_feature_that_is_not_finite_is_named(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = ImageEncoder.features

    def spoilt(self: ImageEncoder, pixels: torch.Tensor) -> torch.Tensor:
        found = features(self, pixels).clone()
        if len(pixels) == 5:  # the last block, rows 16 to 20
            found[3, 1, 2] = float("inf")
        return found

    monkeypatch.setattr(ImageEncoder, "features", spoilt)
    with pytest.raises(CaptionerError, match=r"image 1057 \(view 0\)"):  # row 19
        extract(quick(), runtime(device="cuda"), ENCODER, images, tmp_path / "f.h5")
