"""A decoder, an attention mechanism or a metric is added by one file and its row in a registry, nothing else."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioner.decoder import DecoderConfig
from captioner.decoder.attention import ATTENTIONS
from captioner.decoder.registry import DECODERS
from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.images.captions import CaptionSet
from captioner.metrics.registry import METRICS
from captioner.model_io import load_model
from captioner.parameters import parse_parameters
from captioner.training import train
from captioner.vocabulary.vocabulary import Vocabulary, build_vocabulary
from tests.evaluation import small as evaluating
from tests.pipeline.toys.attention import FirstPosition
from tests.pipeline.toys.decoder import ToyDecoder
from tests.pipeline.toys.metric import METRIC
from tests.training import small as training


@pytest.fixture
def no_java(monkeypatch) -> None:
    monkeypatch.setattr("captioner.metrics.scores.find_java", lambda: None)


@pytest.fixture
def toys(monkeypatch) -> None:
    """All three are registered."""
    monkeypatch.setitem(DECODERS, "toy", ToyDecoder)
    monkeypatch.setitem(ATTENTIONS, "toy", FirstPosition)
    monkeypatch.setitem(METRICS, "toy", METRIC)


def trained(folder: Path, **options: Any) -> dict[str, Path]:
    """Train on the data set of the evaluation's tests; the keys are keyword arguments of ``evaluate``."""
    paths = evaluating.make_run(folder)
    words = build_vocabulary(evaluating.WORDS).words
    vocabulary = Vocabulary(words, [0] * len(words), {"max_length": 12})
    vocabulary.save(folder / "vocab.json")
    vectors = np.random.default_rng(0).normal(0, 0.4, (len(vocabulary), 6)).astype(np.float32)
    np.save(folder / "embeddings.npy", vectors)
    parameters = dataclasses.replace(training.small_parameters(**options), dataset="small")
    inputs = {"vocab": folder / "vocab.json", "embeddings": folder / "embeddings.npy"}
    models, results = folder / "trained", folder / "results"
    train(parameters, paths["features"], paths["captions"], **inputs, models=models, results=results)
    return {**paths, "models": models}


@pytest.mark.parametrize("name", ["decoder", "attention"])
def test_a_name_is_known_once_it_is_registered(name: str, monkeypatch) -> None:
    registry, toy = {"decoder": (DECODERS, ToyDecoder), "attention": (ATTENTIONS, FirstPosition)}[name]
    with pytest.raises(CaptionerError, match=f"{name}='toy'"):
        parse_parameters({name: "toy"})
    monkeypatch.setitem(registry, "toy", toy)
    assert getattr(parse_parameters({name: "toy"}), name) == "toy"


def test_the_toy_decoder_predicts_the_same_in_steps_and_at_once() -> None:
    config = DecoderConfig("toy", "none", vocabulary_size=9, embedding_size=3, channels=5, positions=4)
    decoder = ToyDecoder(config).double()
    memory = decoder.encode(torch.randn(2, 4, 5, dtype=torch.float64))
    tokens = torch.tensor([[[1, 5, 6], [1, 7, 0]], [[1, 5, 0], [1, 8, 4]]])
    state, stepped = decoder.initial_state(memory, 2), []
    for column in tokens.unbind(2):
        logits, state, _ = decoder.step(column, state, memory)
        stepped.append(logits)
    steps = torch.stack(stepped, 2)  # (I, K, T, V)
    torch.testing.assert_close(decoder(memory, tokens)[0], steps[tokens != 0])
    index = torch.tensor([3, 0, 10])
    torch.testing.assert_close(decoder(memory, tokens, index)[0], steps.flatten(0, 2)[index])
    assert not torch.allclose(steps[0, 0, :2], steps[1, 0, :2])  # the same words of another image


def test_the_toy_decoder_trains(toys, tmp_path: Path) -> None:
    data = training.make_data(tmp_path / "data")
    options = {"decoder": "toy", "learning_rate": 0.05, "scst_epochs": 1, "scst_samples": 2}
    rows = training.history(training.run(tmp_path / "run", data, training.small_parameters(**options)))
    losses = [float(row["val_cross_entropy"]) for row in rows]
    assert len(losses) == 4 and losses[2] < losses[0] - 0.3
    assert float(rows[3]["train_reward"]) > 0  # the last epoch is self-critical
    decoder = load_model(tmp_path / "run/models").decoder
    assert isinstance(decoder, ToyDecoder) and decoder.config.decoder == "toy"


def test_the_toy_decoder_is_evaluated(toys, no_java, tmp_path: Path) -> None:
    paths = trained(tmp_path, decoder="toy", learning_rate=0.05)
    metrics = json.loads((evaluating.run(paths, tmp_path / "evaluation") / "metrics.json").read_text())
    losses = [float(row["val_cross_entropy"]) for row in training.history(tmp_path)]
    assert metrics["val_cross_entropy"] == pytest.approx(min(losses), abs=1e-5)  # of the weights that were saved
    with open(tmp_path / "evaluation/per_image.csv", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    assert len(captions) == len(evaluating.SPLITS["test"]) and all(captions)


def test_the_toy_attention_looks_at_position_0_alone(toys, tmp_path: Path) -> None:
    data = training.make_data(tmp_path / "data")
    folder = training.run(tmp_path / "run", data, training.small_parameters(attention="toy"))
    losses = [row["train_cross_entropy"] for row in training.history_numbers(folder)]
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.3

    decoder = load_model(folder / "models").decoder
    assert isinstance(decoder.attention, FirstPosition)
    store, captions = FeatureStore.open(data["features"]), CaptionSet.load(data["captions"])
    with store.reader("ram") as reader:
        rows = store.rows(np.array(captions.image_ids("val")))
        memory = decoder.encode(reader.read(rows, np.zeros(len(rows), dtype=np.int64)))
    images = len(rows)
    tokens = torch.ones(images, 2, dtype=torch.int64)
    _, _, attention = decoder.step(tokens, decoder.initial_state(memory, 2), memory)
    assert attention.shape == (images, 2, training.POSITIONS)
    assert (attention[..., 0] == 1).all() and (attention[..., 1:] == 0).all()


def test_the_toy_metric_is_in_the_files(toys, no_java, tmp_path: Path) -> None:
    paths = evaluating.make_run(tmp_path)
    results = evaluating.run(paths, tmp_path / "evaluation")
    with open(results / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lengths = [len(row["caption"]) for row in rows]
    assert len(set(lengths)) > 1 and [float(row["toy"]) for row in rows] == lengths
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["toy"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-6)


def test_the_toy_metric_chooses_the_beam_size(toys, no_java, tmp_path: Path) -> None:
    """The toy metric chooses the beam size of a recurrent decoder with the toy attention."""
    paths = trained(tmp_path, attention="toy", epochs=2)
    results = evaluating.run(paths, tmp_path / "evaluation", select_by="toy")
    metrics = json.loads((results / "metrics.json").read_text())
    with open(results / "per_image.csv", newline="") as file:
        lengths = [len(row["caption"]) for row in csv.DictReader(file)]
    assert metrics["toy"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-6)
    with open(results / "plots/beam_sweep.csv", newline="") as file:
        by_size = {int(row["beam_size"]): float(row["val_toy"]) for row in csv.DictReader(file)}
    assert len(by_size) == 2 and by_size[metrics["beam_size"]] == max(by_size.values())
