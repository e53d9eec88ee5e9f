"""An encoder of the user's own goes with the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from captioner.errors import CaptionerError
from captioner.features.encoders import build_encoder
from captioner.features.store import write_features
from captioner.model_io import ENCODER, save_encoder
from captioner.parameters import ExtractParameters, Parameters
from tests.training.small import make_data, run, small_parameters


def with_weights(weights: Path) -> Parameters:
    parameters = small_parameters(epochs=1)
    return dataclasses.replace(parameters, extract=dataclasses.replace(parameters.extract, weights=str(weights)))


def test_weights_from_a_file_are_stored_in_half_precision(tmp_path: Path) -> None:
    own = build_encoder("squeezenet1_1", "random", 7)
    torch.save(own.body.state_dict(), tmp_path / "own.pth")
    data = make_data(tmp_path / "data", images=20, weights_name="file", weights_sha256=own.weights_sha256)
    run(tmp_path, data, with_weights(tmp_path / "own.pth"))
    stored = load_file(tmp_path / "models/encoder.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    hashes = json.loads((tmp_path / "models/config.json").read_text())["sha256"]
    assert hashes == {
        name: hashlib.sha256((tmp_path / "models" / name).read_bytes()).hexdigest()
        for name in ("encoder.safetensors", "model.safetensors")
    }
    again = build_encoder("squeezenet1_1", str(tmp_path / "models/encoder.safetensors"), 0)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(images), own(images), rtol=0.01, atol=0.01)


def test_other_weights_than_the_features_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = build_encoder("squeezenet1_1", "random", 7)
    torch.save(own.body.state_dict(), tmp_path / "own.pth")
    data = make_data(tmp_path / "data", images=20, weights_name="file", weights_sha256="0123456789abcdef" * 4)
    monkeypatch.setattr("captioner.training.objectives.CrossEntropy.prepare", None)
    with pytest.raises(CaptionerError, match=f"{own.weights_sha256[:12]}.*0123456789ab"):
        run(tmp_path, data, with_weights(tmp_path / "own.pth"))


def test_bundled_weights_are_not_stored(tmp_path: Path) -> None:
    run(tmp_path, make_data(tmp_path / "data", images=20), small_parameters(epochs=1))
    assert not (tmp_path / "models/encoder.safetensors").exists()


def test_weights_of_a_last_stage_are_stored_and_read_again(tmp_path: Path) -> None:
    """Those of the convolution after it are left out, in the file as in the hash."""
    name = "timm/tf_efficientnet_lite0"
    own = build_encoder(name, "random", 7, image_size=64, layer="last_stage")
    torch.save(build_encoder(name, "random", 7, image_size=64).body.state_dict(), tmp_path / "whole.pth")
    facts = {"encoder": name, "layer": own.layer, "weights_name": "file", "weights_sha256": own.weights_sha256}
    store = write_features(tmp_path / "f.h5", np.ones((1, 1, 4, 320), np.float16), [1], facts)
    options = ExtractParameters(weights=str(tmp_path / "whole.pth"), image_size=64, layer="last_stage")
    save_encoder(tmp_path, store, options)
    assert not any("conv_head" in key for key in load_file(tmp_path / ENCODER))
    again = build_encoder(name, str(tmp_path / ENCODER), image_size=64, layer="last_stage")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(images), own(images), rtol=0.02, atol=0.02)
