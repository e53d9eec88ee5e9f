"""models/: what is saved is loaded again; every fault gives an error of one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from captioner.decoder import build_decoder
from captioner.decoder.positions import sinusoidal_positions
from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.model_io import FORMAT_VERSION, load_model, save_model
from tests.evaluation import small
from tests.model_files import replace_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.make_run(tmp_path_factory.mktemp("model"))["models"]


def config_change(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return apply


def weights_change(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        replace_weights(folder, tensors)

    return apply


FAULTS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: no readable weights"),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), "no valid JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "no mapping"),
    "truncated": (
        lambda folder: replace_weights(folder, (folder / "model.safetensors").read_bytes()[:-9]),
        "no readable weights",
    ),
    "hashes are a list": (config_change(lambda content: content.update(sha256=[])), r"sha256=\[\] is no mapping"),
    "other version": (
        config_change(lambda content: content.update(format_version=99)),
        f"model format 99, this program reads format {FORMAT_VERSION}; train again: dvc repro",
    ),
    "older version": (
        config_change(lambda content: [content.update(format_version=2), content.pop("training")]),
        f"model format 2, this program reads format {FORMAT_VERSION}; train again: dvc repro",
    ),
    "training is a list": (config_change(lambda content: content.update(training=[])), r"training=\[\] is no mapping"),
    "unknown key": (config_change(lambda content: content.update(colour=1)), "'colour' is unknown"),
    "missing key": (config_change(lambda content: content.pop("encoder")), "'encoder' is missing"),
    "unknown setting": (
        config_change(lambda content: content["decoder"].update(wings=8)),
        "unknown decoder setting wings=8",
    ),
    "missing setting": (config_change(lambda content: content["decoder"].pop("dropout")), "dropout is missing"),
    "mistyped setting": (
        config_change(lambda content: content["decoder"].update(hidden_size="many")),
        "hidden_size='many'",
    ),
    "negative setting": (config_change(lambda content: content["decoder"].update(hidden_size=-1)), "hidden_size=-1"),
    "unknown norm": (
        config_change(lambda content: content["decoder"].update(norm="loud")),
        "config.json: train.norm=loud: no such",
    ),
    "endless layers": (
        config_change(lambda content: content["decoder"].update(layers=10**9)),
        "layers=1000000000 is no usable int",
    ),
    "more layers": (
        config_change(lambda content: content["decoder"].update(layers=2)),
        r"the tensor between.0.bias is missing",
    ),
    "tied": (
        config_change(lambda content: content["decoder"].update(tie_weights=True)),
        "the tensor output_map.weight is missing",
    ),
    "unknown cell": (
        config_change(lambda content: content["decoder"].update(decoder="../../x")),
        "no such decoder; it must be one of gru, lstm",
    ),
    "fewer words": (
        config_change(lambda content: [content["vocabulary"][key].pop() for key in ("words", "counts")]),
        "words but the decoder was trained with",
    ),
    "other grid": (
        config_change(lambda content: content.update(grid=[3, 3])),
        r"grid=\[3, 3\] does not have the decoder's 6 positions",
    ),
    "huge": (
        config_change(lambda content: content["decoder"].update(hidden_size=10**6)),
        "these two files are not of one model",
    ),
    "impossible": (
        config_change(lambda content: content["decoder"].update(hidden_size=10**12)),
        "describe no possible model",
    ),
    "tensor missing": (
        weights_change(lambda tensors: tensors.pop(min(tensors))),
        r"the tensor \S+ is missing, but config.json",
    ),
    "tensor added": (weights_change(lambda tensors: tensors.update(extra=torch.zeros(2))), "the tensor extra is"),
    "other shape": (
        weights_change(lambda tensors: tensors.update({min(tensors): torch.zeros(7, 7, 7)})),
        r"the tensor \S+ is \(7, 7, 7\), but",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_error_of_one_line(folder: Path, tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    shutil.copytree(folder, tmp_path / "models")
    change(tmp_path / "models")
    with pytest.raises(CaptionerError, match=message) as error:
        load_model(tmp_path / "models")
    assert str(tmp_path) in error.value.message and "\n" not in error.value.message


def test_training_settings_are_kept(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    assert model.config["training"] == {}  # they may be left out
    facts = {key: model.config[key] for key in small.model_facts(FeatureStore.open(folder.parent / "f.h5"))}
    save_model(tmp_path, model.decoder, model.vocabulary, facts | {"training": {"seed": 3, "epochs": 2}})
    assert load_model(tmp_path).config == model.config | {"training": {"seed": 3, "epochs": 2}}


def test_loads_in_eval_mode_without_gradients(folder: Path) -> None:
    model = load_model(folder)
    assert not model.decoder.training and not any(parameter.requires_grad for parameter in model.decoder.parameters())


def test_a_model_with_sinusoidal_positions_is_loaded(folder: Path, tmp_path: Path) -> None:
    """While it is built torch's default device is one without numbers."""
    sinusoidal_positions.cache_clear()  # as in a process that has not trained it
    model = load_model(folder)
    torch.manual_seed(0)
    decoder = build_decoder(dataclasses.replace(model.decoder.config, position="sinusoidal"))
    facts = {key: model.config[key] for key in small.model_facts(FeatureStore.open(folder.parent / "f.h5"))}
    save_model(tmp_path, decoder, model.vocabulary, facts)
    sinusoidal_positions.cache_clear()
    features = torch.rand(1, decoder.config.positions, decoder.config.channels)
    found = load_model(tmp_path).decoder.encode(features).values
    assert torch.equal(found, decoder.eval().encode(features).values)


@pytest.mark.parametrize("position", [0, 100, 5000, -1])
def test_one_damaged_byte_is_refused(folder: Path, tmp_path: Path, position: int) -> None:
    """safetensors itself notices only a damaged header."""
    copy = Path(shutil.copytree(folder, tmp_path / "models"))
    data = bytearray((copy / "model.safetensors").read_bytes())
    original = hashlib.sha256(data).hexdigest()
    data[position] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    damaged = hashlib.sha256(data).hexdigest()
    message = f"model.safetensors: damaged.* its SHA-256 is {damaged[:12]} and not {original[:12]}.*; copy the model's"
    with pytest.raises(CaptionerError, match=message):
        load_model(copy)


def test_a_model_without_hashes_is_loaded(folder: Path, tmp_path: Path) -> None:
    """Those of older versions have none."""
    copy = Path(shutil.copytree(folder, tmp_path / "models"))
    config_change(lambda content: content.pop("sha256"))(copy)
    assert "sha256" not in load_model(copy).config
