"""The stage as a whole on a small data set."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.model_io import load_model
from captioner.parameters import TrainParameters
from captioner.training.data import epoch_batches
from captioner.vocabulary.vocabulary import END, START, Vocabulary
from tests.data import ROOT
from tests.training.small import (
    history_numbers,
    make_data,
    metrics,
    read_data,
    result_bytes,
    run,
    small_parameters,
    with_runtime,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the parameters that other runs are compared with."""
    return run(tmp_path_factory.mktemp("base"), data, small_parameters())


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_learns_what_the_images_show(data: dict[str, Path], tmp_path: Path, decoder: str) -> None:
    run(tmp_path, data, small_parameters(decoder=decoder, epochs=20, hidden_size=32, dropout=0.0))
    rows = history_numbers(tmp_path)
    best = min(rows, key=lambda row: row["val_cross_entropy"])
    assert rows[0]["val_cross_entropy"] > 2 > 0.75 > best["val_cross_entropy"]
    found = metrics(tmp_path)
    assert found["best_epoch"] == best["epoch"] and found["epochs"] == len(rows)
    assert found["val_perplexity"] == pytest.approx(math.exp(found["val_cross_entropy"]), abs=1e-3)
    timing = json.loads((tmp_path / "results/timing.json").read_text())
    assert len(timing["epoch_seconds"]) == len(rows) and timing["captions_per_second"] > 0
    assert not (tmp_path / "models.partial").exists()


@pytest.mark.parametrize(
    "options", [{}, {"layers": 2, "norm": "batch", "embedding_size": 5, "tie_weights": True, "ema": 0.5}]
)
def test_stored_model_has_the_best_epochs_cross_entropy(
    data: dict[str, Path], base: Path, tmp_path: Path, options: dict[str, int | str | float]
) -> None:
    """Counted here from the model's files alone, caption by caption with step()."""
    folder = run(tmp_path, data, small_parameters(**options)) if options else base
    model = load_model(folder / "models")
    inputs = read_data(data)
    total = count = correct = 0
    with FeatureStore.open(data["features"]).reader() as reader:
        for row, image in zip(inputs.val.tokens, inputs.val.image):
            features = reader.read(inputs.val_rows[[image]])
            memory = model.decoder.encode(features)
            state = model.decoder.initial_state(memory, 1)
            caption = row[row != 0]
            for word, target in zip(caption, caption[1:]):
                logits, state, _ = model.decoder.step(torch.tensor([[int(word)]]), state, memory)
                total -= torch.log_softmax(logits[0, 0].double(), 0)[int(target)].item()
                correct += int(logits.argmax()) == target
                count += 1
            assert caption[0] == START and caption[-1] == END
    assert metrics(folder)["val_cross_entropy"] == pytest.approx(total / count, abs=1e-4)
    assert metrics(folder)["val_token_accuracy"] == pytest.approx(100 * correct / count, abs=1e-4)


def test_model_folder_is_complete(data: dict[str, Path], base: Path) -> None:
    assert sorted(path.name for path in (base / "models").iterdir()) == ["config.json", "model.safetensors"]
    model, store = load_model(base / "models"), FeatureStore.open(data["features"])
    assert model.vocabulary.words == Vocabulary.load(data["vocab"]).words
    assert torch.equal(model.decoder.embedding.weight, torch.from_numpy(np.load(data["embeddings"])))  # frozen
    config = model.config
    assert (config["encoder"], config["weights_name"], config["weights_sha256"]) == (
        store.encoder,
        store.weights_name,
        store.weights_sha256,
    )
    assert config["preprocessing"] == store.preprocessing and config["features_fingerprint"] == store.fingerprint
    assert config["images"] == {"image_size": 256, "jpeg_quality": 90}  # download's defaults
    assert (config["weights_seed"], config["precision"]) == (1, "fp32")  # extract's default, and the features file's
    assert config["max_length"] == 12 and config["dataset"] == "scenes" and config["grid"] == [2, 2]
    options = dataclasses.asdict(small_parameters().train)
    assert (
        options.pop("init_from") is None
        and options.pop("tensorboard") is False
        and config["training"] == json.loads(json.dumps({"seed": 1} | options))
    )
    assert str(base) not in (base / "models/config.json").read_text()


def test_same_parameters_same_bytes_whatever_the_runtime(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    other = with_runtime(small_parameters(), checkpoint_seconds=0, features_on="disk")
    assert result_bytes(run(tmp_path, data, other)) == result_bytes(base)


CHANGES = {
    "hidden_size": 20,
    "layers": 2,
    "norm": "batch",
    "embedding_size": 5,
    "tie_weights": True,
    "attention_size": 9,
    "feature_size": 13,
    "position": "none",
    "dropout": 0.0,
    "tune_embeddings": True,
    "batch_size": 8,
    "captions_per_image": 1,
    "epochs": 2,
    "learning_rate": 0.002,
    "projection_learning_rate": 0.0,
    "clip": 0.01,
    "doubly_stochastic": 1.0,
    "label_smoothing": 0.2,
    "optimizer": "rmsprop",
    "weight_decay": 0.1,
    "accumulate": 2,
    "ema": 0.9,
    "warmup_steps": 9,
    "step_every": 4,
    "cosine": True,
    "precision": "bf16",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_parameter_changes_the_result(data: dict[str, Path], base: Path, tmp_path: Path, name: str) -> None:
    changed = run(tmp_path, data, small_parameters(**{name: CHANGES[name]}))
    assert result_bytes(changed)["models/model.safetensors"] != result_bytes(base)["models/model.safetensors"]
    weights, before = load_model(changed / "models").decoder, load_model(base / "models").decoder
    if name == "hidden_size":
        assert weights.vocabulary.in_features == 20
    elif name == "layers":
        assert len(weights.layers) == 2 and weights.between[0].in_features == 16
    elif name == "norm":
        assert weights.norm.running_mean.shape == (12,) and weights.norm.running_mean.any()
    elif name == "embedding_size":
        assert weights.embedding_map.weight.shape == (5, 8) and weights.word.in_features == 5
        assert torch.equal(weights.embedding.weight, before.embedding.weight)  # frozen, of its own size
    elif name == "tie_weights":
        words, size = before.embedding.weight.shape
        assert weights.vocabulary is None and weights.tied_bias.any()
        assert metrics(changed)["parameters"] == metrics(base)["parameters"] - words * 16 + 16 * size
    elif name == "attention_size":
        assert weights.attention.score.weight.shape == (1, 9)
    elif name == "feature_size":
        assert weights.projection.out_features == 13
    elif name == "position":
        assert weights.position is None and before.position is not None
    elif name == "tune_embeddings":
        assert not torch.equal(weights.embedding.weight, before.embedding.weight)
        assert metrics(changed)["parameters"] == metrics(base)["parameters"] + before.embedding.weight.numel()
    elif name == "epochs":
        assert history_numbers(changed) == history_numbers(base)[:2]
    elif name == "learning_rate":
        assert [row["learning_rate"] for row in history_numbers(changed)] == [0.002] * 3
    elif name == "projection_learning_rate":
        again = run(tmp_path / "longer", data, small_parameters(projection_learning_rate=0.0, epochs=1))
        start = load_model(again / "models").decoder
        assert torch.equal(weights.projection.weight, start.projection.weight) and torch.equal(
            weights.position, start.position
        )
        assert not torch.equal(weights.word.weight, start.word.weight)
    elif name == "label_smoothing":  # what is reported is not smoothed: a smoothed model is less sure
        assert history_numbers(changed)[-1]["train_cross_entropy"] > history_numbers(base)[-1]["train_cross_entropy"]
    elif name == "precision":  # bf16 rounds to 8 bits: another result, but nearly the same one
        for row, exact in zip(history_numbers(changed), history_numbers(base), strict=True):
            assert row["train_cross_entropy"] == pytest.approx(exact["train_cross_entropy"], rel=0.02)
        assert all(tensor.dtype == torch.float32 for tensor in weights.state_dict().values())
    elif name == "doubly_stochastic":
        assert metrics(changed)["parameters"] == metrics(base)["parameters"]


def test_positions_are_of_the_grid_of_the_features(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    model = load_model(run(tmp_path, data, small_parameters(position="sinusoidal", epochs=1)) / "models")
    assert model.decoder.position is None and model.decoder.config.rows == model.config["grid"][0] == 2
    assert history_numbers(tmp_path) != history_numbers(base)[:1]


def test_heads_change_the_result_of_multihead_attention(data: dict[str, Path], tmp_path: Path) -> None:
    ours, other = (
        run(tmp_path / str(heads), data, small_parameters(attention="multihead", heads=heads, epochs=1))
        for heads in (2, 4)
    )
    assert history_numbers(ours) != history_numbers(other)
    assert load_model(ours / "models").decoder.attention.heads == 2
    with pytest.raises(CaptionerError, match="train.heads=3: it does not divide train.attention_size=8"):
        run(tmp_path / "3", data, small_parameters(attention="multihead", heads=3))


def test_schedule_parameters(data: dict[str, Path], tmp_path: Path) -> None:
    """With a learning rate far too high validation stops improving, and the three parameters say what happens then."""
    options = {"learning_rate": 0.3, "projection_learning_rate": 0.3, "epochs": 8}
    rows = history_numbers(
        run(tmp_path / "a", data, small_parameters(**options, plateau_patience=0, plateau_factor=0.1, patience=2))
    )
    best, scale, waited = math.inf, 1.0, 0
    for row in rows:
        assert row["learning_rate"] == pytest.approx(0.3 * scale)
        assert row["projection_learning_rate"] == pytest.approx(0.3 * scale)
        if row["val_cross_entropy"] < best:
            best, waited = row["val_cross_entropy"], 0
        else:
            scale, waited = scale * 0.1, waited + 1
    assert scale < 1 and (len(rows) == 8 or waited == 2)
    slower = history_numbers(
        run(tmp_path / "b", data, small_parameters(**options, plateau_patience=1, plateau_factor=0.1, patience=2))
    )
    other = history_numbers(
        run(tmp_path / "c", data, small_parameters(**options, plateau_patience=0, plateau_factor=0.7, patience=2))
    )
    short = history_numbers(
        run(tmp_path / "d", data, small_parameters(**options, plateau_patience=0, plateau_factor=0.1, patience=1))
    )
    rates = [[row["learning_rate"] for row in run_rows] for run_rows in (rows, slower, other)]
    assert rates[0] != rates[1] and rates[0] != rates[2]
    assert short == rows[: len(short)] and len(short) < 8


OTHERS = {
    "heads",
    "plateau_patience",
    "plateau_factor",
    "patience",  # above
    "momentum",
    "step_factor",
    "plateau_on",
    "select_by",
    "gap_patience",
    "group_by_length",  # in test_optimizers, test_schedules and test_options
    "sampling",
    "sampling_start",
    "sampling_epochs",
    "sampling_rate",  # in test_scheduled_sampling
    "init_from",  # in test_initial
    "tensorboard",  # in test_logs
    "scst_epochs",
    "scst_samples",
    "scst_baseline",
    "scst_learning_rate",
    "scst_bleu_weight",
    "scst_dropout",  # in test_self_critical_run
    "hard_reinforce",
    "hard_entropy",  # in test_hard_run
    "word_position",  # in test_transformer_run
}


def test_every_train_parameter_is_tested() -> None:
    assert {field.name for field in dataclasses.fields(TrainParameters)} == {*CHANGES, *OTHERS}


def test_selectors_change_the_result(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    kinds = [{"attention": name} for name in ("none", "hard", "dot", "multihead", "bilinear")]
    for number, changes in enumerate(({"seed": 2}, *kinds, {"decoder": "lstm"}, {"decoder": "transformer"})):
        changed = run(tmp_path / str(number), data, small_parameters(**changes, epochs=1))
        assert history_numbers(changed)[0] != history_numbers(base)[0]


def test_stored_views_are_drawn_for_training_only(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", views=3)
    features = FeatureStore.open(data["features"])
    assert features.views == 3
    inputs = read_data(data)
    views = np.concatenate([batch.views for batch in epoch_batches(inputs.train, 16, 0, features.views, 1, 1)])
    assert set(views.tolist()) == {0, 1, 2}
    run(tmp_path, data, small_parameters(epochs=1))


class Undeclared:
    """A section of the parameters that dvc.yaml does not declare for the stage."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"training reads the parameter {name}, of which dvc.yaml knows nothing")


def test_training_reads_only_the_parameters_that_dvc_knows(tmp_path: Path) -> None:
    """How images were stored comes from the features file; ``runtime`` changes no result."""
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["params"]
    assert declared == ["dataset", "encoder", "decoder", "attention", "seed", "extract", "train"]
    others = {name: Undeclared() for name in ("download", "vocab", "evaluate")}
    data = make_data(tmp_path / "data", stated={"image_size": 300, "jpeg_quality": 75, "weights_seed": 4})
    run(tmp_path, data, dataclasses.replace(small_parameters(epochs=1), **others))
    config = json.loads((tmp_path / "models/config.json").read_text())
    assert config["images"] == {"image_size": 300, "jpeg_quality": 75} and config["weights_seed"] == 4
