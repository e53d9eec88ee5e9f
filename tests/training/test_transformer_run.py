"""Runs of ``decoder=transformer``: all objectives, what is refused, and a model of it at work."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.decoder.transformer import TransformerDecoder
from captioner.errors import CaptionerError
from captioner.model_io import load_model
from captioner.parameters import Parameters
from captioner.training.objectives.scheduled_sampling import mix_inputs
from captioner.training.optimizers import parameter_groups
from captioner.vocabulary.vocabulary import PAD, START
from tests.decoder.examples import make_decoder, make_features, make_tokens
from tests.training.cuts import power_cut
from tests.training.small import history, history_numbers, result_bytes, run, small_parameters, with_runtime


def parameters(**options: Any) -> Parameters:
    return small_parameters(**{"decoder": "transformer", "layers": 2, **options})


@pytest.fixture(scope="module")
def usual(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("usual"), data, parameters(epochs=25, learning_rate=0.005))


def test_learns(usual: Path) -> None:
    """To the loss of a decoder that sees three things in an image, and not that of one that has learned the sentences:
    which animal, colour and place are 4 * 3 * 3 equally likely ones, ln 36 nats of some 8 tokens."""
    losses = [row["val_cross_entropy"] for row in history_numbers(usual)]
    assert min(losses) < math.log(36) / 8
    config = load_model(usual / "models").decoder.config
    assert (config.decoder, config.word_position, config.max_length) == ("transformer", "learned", 30)


def test_word_positions_are_those_asked_for(data: dict[str, Path], usual: Path, tmp_path: Path) -> None:
    folder = run(tmp_path, data, parameters(word_position="sinusoidal", epochs=1, learning_rate=0.005))
    assert history_numbers(folder)[0]["val_cross_entropy"] != history_numbers(usual)[0]["val_cross_entropy"]
    sizes = [
        {name: tuple(weight.shape) for name, weight in load_model(made / "models").decoder.state_dict().items()}
        for made in (usual, folder)
    ]
    assert sizes[0] == {**sizes[1], "word_position": (32, 16)}  # START and 30 words, up to a multiple of 4


def test_a_run_that_was_killed_ends_with_the_same_bytes(data: dict[str, Path], tmp_path: Path) -> None:
    options = {"epochs": 2, "dropout": 0.3, "doubly_stochastic": 0.5, "sampling": "linear", "sampling_epochs": 1}
    often = with_runtime(parameters(**options), checkpoint_seconds=0)
    whole = run(tmp_path / "whole", data, often)
    with power_cut(7):
        run(tmp_path / "cut", data, often)
    assert result_bytes(run(tmp_path / "cut", data, often)) == result_bytes(whole)


def test_self_critical_training_raises_the_reward(data: dict[str, Path], usual: Path, tmp_path: Path) -> None:
    options = {"epochs": 0, "scst_epochs": 3, "scst_learning_rate": 1e-3, "init_from": str(usual / "models")}
    rows = history(run(tmp_path, data, parameters(**options)))
    rewards = [float(row["train_reward"]) for row in rows[1:]]
    assert len(rewards) == 3 and rewards[-1] > rewards[0] + 0.2  # CIDEr-D, of 10 at most


def test_scheduled_sampling_draws_from_cached_steps() -> None:
    """A decoder that is sure of one word draws it; what is drawn is what follows."""
    decoder = make_decoder("transformer", hidden_size=12)
    assert isinstance(decoder, TransformerDecoder) and decoder.vocabulary is not None
    with torch.no_grad():
        decoder.vocabulary.bias[7] = 1e6
    inputs = make_tokens([[4, 2], [3, 5]])[..., :-1]
    mixed = mix_inputs(decoder, make_features(2), inputs, 1.0)
    assert (mixed[..., 0] == START).all() and torch.equal(mixed == PAD, inputs == PAD)
    assert (mixed[..., 1:][inputs[..., 1:] != PAD] == 7).all() and decoder.training


def test_refused_before_training(data: dict[str, Path], tmp_path: Path) -> None:
    for options, message in (
        ({"attention": "multihead"}, "attention=multihead: decoder=transformer"),
        ({"heads": 3}, "train.heads=3: it does not divide train.hidden_size=16"),
    ):
        with pytest.raises(CaptionerError, match=message):
            run(tmp_path, data, parameters(**options))
        assert not (tmp_path / "models").exists()


def test_initial_weights_for_captions_of_another_length(data: dict[str, Path], usual: Path, tmp_path: Path) -> None:
    content = json.loads(data["vocab"].read_text())
    assert content["max_length"] == 12
    (tmp_path / "vocab.json").write_text(json.dumps({**content, "max_length": 40}))
    longer = {**data, "vocab": tmp_path / "vocab.json"}
    init_from = {"init_from": str(usual / "models"), "epochs": 1}
    with pytest.raises(CaptionerError, match="max_length=30, not 40; set vocab.max_length=30, or leave it out"):
        run(tmp_path / "transformer", longer, parameters(**init_from))
    recurrent = run(tmp_path / "gru", data, small_parameters(epochs=1))  # has no limit
    again = small_parameters(epochs=1, init_from=str(recurrent / "models"))
    assert len(history(run(tmp_path / "again", longer, again))) == 2


def test_positions_are_not_decayed() -> None:
    decoder = make_decoder("transformer", hidden_size=12, layers=2)
    groups = parameter_groups(decoder, 0.1)
    spared = {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}
    names = {name for name, parameter in decoder.named_parameters() if id(parameter) in spared}
    assert {"position", "word_position", "output_norm.weight", "layers.1.self_norm.weight"} <= names
    decayed = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad} - names
    assert decayed == {
        "projection.weight",
        "word.weight",
        "vocabulary.weight",
        *(
            f"layers.{number}.{name}.weight"
            for number in range(2)
            for name in ("self_input", "self_output", "cross_query", "cross_input", "cross_output", "inner", "outer")
        ),
    }
