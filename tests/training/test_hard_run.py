"""Runs with hard attention: what its parameters do, resuming, several processes, self-critical training after it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.model_io import load_model
from captioner.training.checkpoint import read_state, write_state
from tests.training.cuts import power_cut
from tests.training.runs import Runs, run_ranks, start_ranks
from tests.training.small import history_numbers, make_data, result_bytes, run, small_parameters, with_runtime


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("base"), data, small_parameters(attention="hard"))


def weights_of(folder: Path) -> bytes:
    return (folder / "models/model.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "value"), [("hard_reinforce", 1.0), ("hard_entropy", 0.5)])
def test_its_parameters_change_the_result_and_no_other_attentions(
    data: dict[str, Path], base: Path, tmp_path: Path, name: str, value: float
) -> None:
    changed = run(tmp_path / "hard", data, small_parameters(attention="hard", **{name: value}))
    assert weights_of(changed) != weights_of(base)
    soft = [
        run(tmp_path / str(len(options)), data, small_parameters(epochs=1, **options))
        for options in ({}, {name: value})
    ]
    assert weights_of(soft[0]) == weights_of(soft[1])
    if name == "hard_entropy":  # weights of more equal size
        assert math.log(4) - spread(changed, data) < 0.5 * (math.log(4) - spread(base, data))


def spread(folder: Path, data: dict[str, Path]) -> float:
    """The mean entropy of the attention at the first word; ln 4 at most."""
    from captioner.features.store import FeatureStore

    decoder = load_model(folder / "models").decoder
    with FeatureStore.open(data["features"]).reader() as reader:
        memory = decoder.encode(reader.read(torch.arange(40).numpy()))
    weights = decoder.step(torch.full((40, 1), 1), decoder.initial_state(memory, 1), memory)[2]
    return -(weights * weights.clamp_min(1e-30).log()).sum(-1).mean().item()


def test_it_learns(data: dict[str, Path], tmp_path: Path) -> None:
    run(tmp_path, data, small_parameters(attention="hard", epochs=20, hidden_size=32, dropout=0.0))
    found = [row["val_cross_entropy"] for row in history_numbers(tmp_path)]
    assert found[0] > 2 > 0.85 > min(found)


def test_resumes_exactly(data: dict[str, Path], tmp_path: Path) -> None:
    """Also into self-critical training, whose steps have no baseline of this kind."""
    parameters = small_parameters(
        attention="hard",
        accumulate=2,
        ema=0.9,
        doubly_stochastic=0.1,
        hard_reinforce=1.0,
        epochs=2,
        scst_epochs=1,
        scst_learning_rate=0.01,
        scst_samples=2,
    )
    whole = run(tmp_path / "whole", data, parameters)
    vocabulary = len(load_model(whole / "models").vocabulary)
    baselines = [-math.log(vocabulary)]
    for newest in ("000001-000000002", "000002-000000000", "000002-000000001", "000003-000000001"):
        with power_cut(newest):
            run(tmp_path / "cut", data, with_runtime(parameters, checkpoint_seconds=0))
        tensors, state = read_state(tmp_path / "cut/models.partial")
        if state["phase"]:
            assert "objective.baseline" not in tensors
        else:
            baselines.append(tensors["objective.baseline"].item())
    assert len(set(baselines)) == 4
    run(tmp_path / "cut", data, parameters)
    assert result_bytes(tmp_path / "cut") == result_bytes(whole)


def test_the_baseline_of_a_state_is_taken_up(data: dict[str, Path], tmp_path: Path) -> None:
    """Another one in the state gives another result; the test above could not tell if it had no effect."""
    parameters, found = small_parameters(attention="hard", hard_reinforce=1.0, epochs=1), []
    for baseline in (None, 5.0):
        folder = tmp_path / str(baseline)
        with power_cut("000001-000000002"):
            run(folder, data, with_runtime(parameters, checkpoint_seconds=0))
        if baseline:
            tensors, state = read_state(folder / "models.partial")
            tensors["objective.baseline"].fill_(baseline)
            write_state(folder / "models.partial", "000001-000000003", tensors, state)
        found.append(weights_of(run(folder, data, parameters)))
    assert found[0] != found[1]


@pytest.mark.parametrize("options", [{"dropout": 0.0}, {"batch_size": 1, "captions_per_image": 1, "accumulate": 2}])
def test_ranks_have_one_baseline_and_the_same_weights(
    runs: Runs, data: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    """Every caption draws here, so what goes into the baseline is known from the loss that all ranks report together.

    In the second case a rank has an empty shard of each batch.
    """
    parameters = small_parameters(attention="hard", epochs=2, **options)
    ranks = run_ranks(runs, tmp_path, 2, "record", data, parameters, False)
    assert ranks[0] == ranks[1] and len(ranks[0]) > 10
    expected = -math.log(len(load_model(tmp_path / "models").vocabulary))
    for step in ranks[0]:
        expected = 0.9 * expected - 0.1 * step["loss"]
        assert step["baseline"] == pytest.approx(expected, rel=1e-9)


def test_two_ranks_resume_exactly(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    """Each goes on with its own generator."""
    options = {"attention": "hard", "hard_reinforce": 1.0, "epochs": 3}
    parameters, newest = with_runtime(small_parameters(**options), checkpoint_seconds=0), "000002-000000003"
    run_ranks(runs, tmp_path / "whole", 2, "record", data, parameters, False)
    codes = start_ranks(runs, tmp_path / "cut", 2, "record_until", newest, data, parameters, False)
    assert codes[0] == 9 and codes[1]
    assert max((tmp_path / "cut").glob("models.partial/*.state")).stem == newest
    run_ranks(runs, tmp_path / "cut", 2, "record", data, parameters, False, log="again")
    assert "going on with unfinished work" in (tmp_path / "cut/again").read_text()
    assert result_bytes(tmp_path / "cut") == result_bytes(tmp_path / "whole")


@pytest.mark.parametrize("world_size", [1, 2])
def test_self_critical_training_leaves_the_attention_as_it_is(
    runs: Runs, data: dict[str, Path], tmp_path: Path, world_size: int
) -> None:
    """Its parameters have no gradient there, on no rank; weight decay, which would shrink them, passes over them."""
    options = {"epochs": 1, "scst_epochs": 1, "scst_learning_rate": 0.01, "weight_decay": 0.1, "accumulate": 2}
    parameters = small_parameters(attention="hard", batch_size=8, **options)
    for steps in run_ranks(runs, tmp_path, world_size, "record", data, parameters):
        first = [step for step in steps if not step["without_gradient"]]
        second = [step for step in steps if step["without_gradient"]]
        assert len(first) > 3 and len(second) > 3 and steps == first + second
        names = {f"attention.{name}" for name in ("query.weight", "query.bias", "key.weight", "score.weight")}
        assert all(set(step["without_gradient"]) == names for step in second)
        assert {step["attention"] for step in second} == {first[-1]["attention"]}
        assert len({step["attention"] for step in first}) == len(first)
        assert len({step["weights"] for step in second}) == len(second)  # all else learns
