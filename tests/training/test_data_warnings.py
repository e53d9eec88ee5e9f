"""What training says of data from which little can be learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from captioner.features.store import FeatureStore, write_features
from tests.training.small import make_data, run, small_parameters


def test_features_of_one_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data(tmp_path / "data", images=20)
    run(tmp_path / "sound", data, small_parameters(epochs=1))
    assert "warning: " not in capsys.readouterr().err
    store = FeatureStore.open(data["features"])
    with store.reader("disk") as reader:
        features = reader.read(np.arange(20)).numpy()[:, None].copy()
    features[3:5] = 0
    write_features(store.path, features, store.image_ids, store.facts)
    run(tmp_path / "zeroed", data, small_parameters(epochs=1))
    assert "f.h5: 2 of 20 images have features that are all zero or one value (103, 104)" in capsys.readouterr().err


def test_one_validation_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data(tmp_path / "data", images=20)
    content = json.loads(data["captions"].read_text())
    for image in content["images"]:
        image["split"] = "val" if image["id"] == 105 else "train"
    data["captions"].write_text(json.dumps(content))
    run(tmp_path, data, small_parameters(epochs=1))
    warning = capsys.readouterr().err
    assert "captions.json: one validation image; CIDEr-D is 0 for a single image" in warning
    assert "raise download.val_share" in warning
