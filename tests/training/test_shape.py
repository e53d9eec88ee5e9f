"""Runs of decoders with other shapes than the usual: they resume, average, load and caption like it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from captioner.features.store import FeatureStore
from captioner.model_io import load_model
from captioner.search import beam_search
from captioner.training.objectives import SelfCritical
from tests.training.cuts import power_cut
from tests.training.small import make_data, metrics, result_bytes, run, small_parameters, with_runtime
from tests.training.watching import Watch, weights_of

ALL: dict[str, Any] = {"layers": 2, "tie_weights": True, "norm": "batch", "embedding_size": 5, "tune_embeddings": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("data"))


RUNS = [({}, (2, 6, 9)), ({"ema": 0.9, "accumulate": 2}, (2, 3, 4)), ({"scst_epochs": 1, "epochs": 2}, (2, 6, 9))]


@pytest.mark.parametrize(("options", "cuts"), RUNS)
def test_resumes_exactly(data: dict[str, Path], tmp_path: Path, options: dict[str, Any], cuts: tuple[int, ...]) -> None:
    parameters = small_parameters(**{**ALL, "decoder": "lstm", **options})
    whole = run(tmp_path / "whole", data, parameters)
    for saves in cuts:  # in the first epoch, in the second, in the third
        with power_cut(saves):
            run(tmp_path / "cut", data, with_runtime(parameters, checkpoint_seconds=0))
    run(tmp_path / "cut", data, parameters)
    assert result_bytes(tmp_path / "cut") == result_bytes(whole)


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_learns_and_captions(data: dict[str, Path], tmp_path: Path, decoder: str) -> None:
    """Frozen word vectors, which are the vocabulary layer's weight too: a caption has its image's words."""
    options = {
        **ALL,
        "tune_embeddings": False,
        "dropout": 0.0,
        "hidden_size": 32,
        "learning_rate": 0.03,
        "projection_learning_rate": 0.03,
    }
    run(tmp_path, data, small_parameters(decoder=decoder, epochs=20, patience=20, batch_size=32, **options))
    assert metrics(tmp_path)["val_cross_entropy"] < 0.9
    model = load_model(tmp_path / "models")
    store = FeatureStore.open(data["features"])
    texts: dict[int, str] = {}
    for annotation in json.loads(data["captions"].read_text())["annotations"]:
        texts.setdefault(annotation["image_id"], "")
        texts[annotation["image_id"]] += " " + annotation["caption"]
    images = [100 + number for number in range(40) if number % 5]
    with store.reader() as reader:
        captions = beam_search(model.decoder, reader.read(store.rows(images)), 3)
    right = sum(
        set(model.vocabulary.decode(best.tokens).split()) <= set(texts[image].split())
        for image, [best] in zip(images, captions)
    )
    assert right >= 24  # of 32 training images; one would be by chance: there are 4 animals, 3 colours and 3 places


def test_tied_and_frozen_word_vectors_stay(data: dict[str, Path], tmp_path: Path) -> None:
    """Only the bias and the map of the vocabulary layer are learned; V times 8 numbers and no more are stored for both
    ends."""
    frozen = run(tmp_path / "frozen", data, small_parameters(tie_weights=True, epochs=1))
    tuned = run(tmp_path / "tuned", data, small_parameters(tie_weights=True, tune_embeddings=True, epochs=1))
    vectors = torch.from_numpy(np.load(data["embeddings"]))
    ours, theirs = (load_file(folder / "models/model.safetensors") for folder in (frozen, tuned))
    assert torch.equal(ours["embedding.weight"], vectors) and not torch.equal(theirs["embedding.weight"], vectors)
    assert (
        ours.keys() == theirs.keys() and "vocabulary.weight" not in ours and ours["output_map.weight"].shape == (8, 16)
    )
    assert ours["tied_bias"].any()
    assert metrics(tuned)["parameters"] - metrics(frozen)["parameters"] == vectors.numel()


def test_running_statistics_are_averaged_with_the_weights(data: dict[str, Path], tmp_path: Path, watch: Watch) -> None:
    names = ("projection.weight", "norm.running_mean", "norm.running_var")
    before: list[dict[str, torch.Tensor]] = []
    after: list[dict[str, torch.Tensor]] = []
    watch.before.append(lambda decoder, _: before.append(weights_of(decoder)))
    watch.after.append(lambda decoder, _: after.append(weights_of(decoder)))
    run(tmp_path, data, small_parameters(norm="batch", ema=0.8, epochs=1))
    average = {name: before[0][name].double() for name in names}
    for number, now in enumerate(after):
        kept = min(0.8, (1 + number) / (10 + number))
        average = {name: kept * average[name] + (1 - kept) * now[name] for name in names}
    published = load_model(tmp_path / "models").decoder.state_dict()
    assert len(after) > 4
    for name in names:
        torch.testing.assert_close(published[name].double(), average[name], rtol=1e-5, atol=1e-7)
        assert (published[name] - after[-1][name]).abs().max() > 1e-4


def test_self_critical_training_uses_the_running_statistics(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> None:
    forward, self_critical = SelfCritical.forward, []
    before: list[dict[str, torch.Tensor]] = []
    changed: list[set[str]] = []

    def seen(self: SelfCritical, *tensors: torch.Tensor) -> Any:
        assert not self.decoder.norm.training
        loss, statistics = forward(self, *tensors)
        assert math.isfinite(float(loss.detach()))
        self_critical.append(len(before))
        return loss, statistics

    def compare(decoder: Any, _: Any) -> None:
        now = weights_of(decoder)
        changed.append({name for name in now if not torch.equal(before[-1][name], now[name])})

    monkeypatch.setattr(SelfCritical, "forward", seen)
    watch.before.append(lambda decoder, _: before.append(weights_of(decoder)))
    watch.after.append(compare)
    run(tmp_path, data, small_parameters(norm="batch", epochs=1, scst_epochs=1, scst_learning_rate=0.01))
    steps = self_critical[0] - 1  # of cross entropy
    assert steps > 4 and len(changed) > steps + 4
    assert all({"norm.running_mean", "norm.running_var"} <= names for names in changed[:steps])
    for names in changed[steps:]:
        assert {"norm.weight", "projection.weight"} <= names and not any("running" in name for name in names)


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_bf16(data: dict[str, Path], tmp_path: Path, norm: str) -> None:
    options = {**ALL, "norm": norm, "position": "none", "epochs": 2}
    exact, rounded = (
        run(tmp_path / name, data, small_parameters(precision=name, **options)) for name in ("fp32", "bf16")
    )
    assert metrics(rounded)["val_cross_entropy"] == pytest.approx(metrics(exact)["val_cross_entropy"], rel=0.03)
    assert result_bytes(rounded)["models/model.safetensors"] != result_bytes(exact)["models/model.safetensors"]
