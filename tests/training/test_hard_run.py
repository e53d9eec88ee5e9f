"""Runs with hard attention: what its parameters do, resuming, several processes, self-critical training after it."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from captioner.training.model_files import load_model

from captioner.training.checkpoint import load_state, save_state
from tests.training.cuts import power_cut
from tests.training.runs import Runs, torchrun_environments
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
    weights = decoder.step(torch.full((40, 1), 1), decoder.start(memory, 1), memory)[2]
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
        tensors, state = load_state(tmp_path / "cut/models.partial")
        if state["phase"]:
            assert "step.baseline" not in tensors
        else:
            baselines.append(tensors["step.baseline"].item())
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
            tensors, state = load_state(folder / "models.partial")
            tensors["step.baseline"].fill_(baseline)
            save_state(folder / "models.partial", "000001-000000003", tensors, state)
        found.append(weights_of(run(folder, data, parameters)))
    assert found[0] != found[1]


@pytest.mark.parametrize("options", [{"dropout": 0.0}, {"batch_size": 3, "captions_per_image": 1, "accumulate": 2}])
def test_processes_have_one_baseline_and_the_same_weights(
    runs: Runs, data: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    """Every caption draws here, so what goes into the baseline is known from the loss that all processes report
    together.

    In the second case a process has no share of some batches.
    """
    processes = [
        runs.call(
            "tests.training.parallel_tasks",
            "record_drawn",
            (tmp_path, data, small_parameters(attention="hard", epochs=2, **options)),
            place,
            tmp_path / "log",
        )
        for place in torchrun_environments(3)
    ]
    assert [runs.wait(process) for process in processes] == [0] * 3, (tmp_path / "log").read_text()
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(3)]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) > 10
    expected = -math.log(len(load_model(tmp_path / "models").vocabulary))
    for loss, _, baseline in seen[0]:
        expected = 0.9 * expected - 0.1 * loss
        assert baseline == pytest.approx(expected, rel=1e-9)


def test_two_processes_resume_exactly(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    parameters = with_runtime(
        small_parameters(attention="hard", hard_reinforce=1.0, epochs=4, patience=9), checkpoint_seconds=0
    )

    def start(name: str) -> list[int]:
        return [
            runs.start(tmp_path / name, data, parameters, place, tmp_path / f"{name}.log")
            for place in torchrun_environments(2)
        ]

    assert [runs.wait(process) for process in start("whole")] == [0, 0], (tmp_path / "whole.log").read_text()
    begun = start("cut")
    limit = time.monotonic() + 60
    while len(list((tmp_path / "cut").glob("models.partial/*.state"))) < 2 and time.monotonic() < limit:
        time.sleep(0.005)
    for process in begun:
        os.kill(process, signal.SIGKILL)
    assert -signal.SIGKILL in [runs.wait(process) for process in begun]
    assert [runs.wait(process) for process in start("cut")] == [0, 0]
    assert "going on with unfinished work" in (tmp_path / "cut.log").read_text()
    assert result_bytes(tmp_path / "cut") == result_bytes(tmp_path / "whole")
