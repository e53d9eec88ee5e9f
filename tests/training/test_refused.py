"""What does not belong together is refused; a loss that is not finite ends a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.features.writer import FeatureWriter
from captioner.parameters import Parameters
from captioner.training.checkpoint import read_state
from tests.training.small import make_data, run, small_parameters


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("data"))


def refused(data: dict[str, Path], tmp_path: Path, parameters: Parameters, *words: str, **replaced: Path) -> None:
    with pytest.raises(CaptionerError) as error:
        run(tmp_path, {**data, **replaced}, parameters)
    message = error.value.message
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not (tmp_path / "models").exists()


def test_refuses_what_does_not_belong_together(data: dict[str, Path], tmp_path: Path) -> None:
    usual = small_parameters()
    refused(
        data,
        tmp_path,
        small_parameters(encoder="resnet50"),
        "encoder=squeezenet1_1",
        "encoder=resnet50",
        "settings",
        "extract stage",
    )
    cropped = dataclasses.replace(usual, extract=dataclasses.replace(usual.extract, fit="crop"))
    refused(data, tmp_path, cropped, "fit=squash", "fit=crop")
    for option, other in (("layer", "last_stage"), ("crop_pct", 0.5)):
        changed = dataclasses.replace(usual, extract=dataclasses.replace(usual.extract, **{option: other}))
        refused(data, tmp_path, changed, f"were made with {option}=", f"say {option}={other}")
    weights = dataclasses.replace(usual, extract=dataclasses.replace(usual.extract, weights="imagenet"))
    refused(data, tmp_path, weights, "weights=bundled", "weights=imagenet")
    fewer = make_data(tmp_path / "fewer", images=30)
    refused(data, tmp_path, usual, "no features of image 131", "8 images", features=fewer["features"])

    np.save(tmp_path / "short.npy", np.load(data["embeddings"])[:-1])
    refused(data, tmp_path, usual, "short.npy", "word vectors for a vocabulary of", embeddings=tmp_path / "short.npy")
    np.save(tmp_path / "bad.npy", np.where(np.arange(8) == 3, np.nan, np.load(data["embeddings"])))
    refused(data, tmp_path, usual, "bad.npy", "not finite", embeddings=tmp_path / "bad.npy")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    refused(data, tmp_path, usual, "text.npy", "floating-point", embeddings=tmp_path / "text.npy")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(data, tmp_path, usual, "object.npy", "no readable array", embeddings=tmp_path / "object.npy")
    refused(data, tmp_path, usual, "missing.npy", "vocab stage", embeddings=tmp_path / "missing.npy")

    content = json.loads(data["captions"].read_text())
    for image in content["images"]:
        image["split"] = "train"
    (tmp_path / "no_val.json").write_text(json.dumps(content))
    refused(data, tmp_path, usual, "no_val.json", "split val", "download.val_share", captions=tmp_path / "no_val.json")


def test_a_loss_that_is_not_finite_names_epoch_and_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    parameters = small_parameters(epochs=3)
    original = run(
        tmp_path / "whole", data, dataclasses.replace(parameters, train=dataclasses.replace(parameters.train, epochs=1))
    )
    store = FeatureStore.open(data["features"])
    row = int(store.rows([101])[0])  # a training image
    features = np.zeros((1, *store.shape[1:]), np.float16)
    features[0, 0, 0, 0] = np.inf
    with FeatureWriter(data["features"]) as writer:
        writer.write(row, features)
        writer.sync()
    with pytest.raises(CaptionerError, match=r"loss is nan at epoch 1, step [1-9]\d*; lower train.learning_rate"):
        run(tmp_path / "bad", data, parameters)
    assert (tmp_path / "bad/models.partial").exists() and not (tmp_path / "bad/models").exists()
    for state in (tmp_path / "bad/models.partial").glob("*.state"):
        tensors, _ = read_state(state.parent)
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
    assert (original / "models").exists()
