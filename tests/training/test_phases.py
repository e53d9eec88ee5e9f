"""Phases that follow one another, and the file STOP that ends training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioner.model_io import load_model
from captioner.parameters import TrainParameters
from captioner.sidecar import Sidecar
from captioner.training import stage
from captioner.training.data import GlobalBatch, epoch_batches
from captioner.training.objectives import CrossEntropy
from captioner.training.phases import Phase
from tests.training.cuts import power_cut
from tests.training.small import (
    batches_of,
    history_numbers,
    make_data,
    metrics,
    read_data,
    result_bytes,
    run,
    small_parameters,
    with_runtime,
)
from tests.training.watching import Watch, Words


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("data"))


def two_phases(options: TrainParameters, references: object, max_length: int, decoder: Any) -> list[Phase]:
    def phase(name: str, epochs: int, rates: tuple[float, float], select_by: str) -> Phase:
        objective = CrossEntropy(decoder, options)
        return Phase(name, objective, epochs, rates, "learning_rate", select_by, options.plateau_on, 0)

    return [
        phase("first", 3, (0.01, 0.01), "val_cross_entropy"),
        phase("second", 2, (0.005, 0.002), "val_token_accuracy"),
    ]


def test_phases_follow_one_another_and_resume_exactly(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "build_phases", two_phases)
    parameters = small_parameters(ema=0.5, patience=5)
    rows = history_numbers(run(tmp_path / "whole", data, parameters))
    assert [row["learning_rate"] for row in rows] == [0.01] * 3 + [0.005] * 2
    assert [row["projection_learning_rate"] for row in rows] == [0.01] * 3 + [0.002] * 2
    for saves in (3, 5, 16):
        with power_cut(saves):
            run(tmp_path / "cut", data, with_runtime(parameters, checkpoint_seconds=0))
    run(tmp_path / "cut", data, parameters)
    assert result_bytes(tmp_path / "cut") == result_bytes(tmp_path / "whole")


@pytest.mark.parametrize(("accuracies", "best"), [([0.3, 0.2, 0.4, 0.2, 0.1], 2), ([0.3, 0.2, 0.4, 0.1, 0.3], 5)])
def test_a_phase_begins_from_the_best_weights(
    data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: Words,
    script: Callable,
    accuracies: list[float],
    best: int,
) -> None:
    """The best by cross entropy (epoch 2) is what the second phase begins from, and must outdo by accuracy (0.2)."""
    before, after = words.before, words.after
    monkeypatch.setattr(stage, "build_phases", two_phases)
    script([3, 1, 2, 9, 9], accuracies)
    run(tmp_path, data, small_parameters())
    steps = np.cumsum(batches_of(data, 5))
    assert torch.equal(before[steps[2]], after[steps[1] - 1]) and not torch.equal(before[steps[2]], after[steps[2] - 1])
    assert metrics(tmp_path)["best_epoch"] == best
    assert torch.equal(load_model(tmp_path / "models").decoder.word.weight, after[steps[best - 1] - 1])


def stop_after(folder: Path, steps: int) -> Callable[..., None]:
    done: list[int] = []

    def seen(*_: Any) -> None:
        done.append(1)
        assert len(done) <= steps, "a step after the stop file"
        if len(done) == steps:
            (folder / "models.partial/STOP").touch()

    return seen


@pytest.mark.parametrize("steps", [8, 12])
def test_a_stop_file_publishes_the_best_model_so_far(
    data: dict[str, Path], tmp_path: Path, watch: Watch, steps: int
) -> None:
    """Within the second epoch, or after its last step."""
    whole = run(tmp_path / "whole", data, small_parameters(epochs=1))
    watch.after.append(stop_after(tmp_path / "cut", steps))
    cut = run(tmp_path / "cut", data, small_parameters(epochs=50))
    assert history_numbers(cut) == history_numbers(whole)
    assert metrics(cut)["stopped"] == "by file" and metrics(whole)["stopped"] == "epochs"
    assert result_bytes(cut)["models/model.safetensors"] == result_bytes(whole)["models/model.safetensors"]
    assert not (cut / "models.partial").exists()


def test_a_stop_file_in_the_first_epoch_validates(
    data: dict[str, Path], tmp_path: Path, watch: Watch, words: Words
) -> None:
    watch.after.append(stop_after(tmp_path, 2))
    run(tmp_path, data, small_parameters())
    (row,) = history_numbers(tmp_path)
    table = read_data(data).train
    assert row["tokens"] == GlobalBatch.of(epoch_batches(table, 16, 0, 1, seed=1, epoch=1)[:2], table).tokens
    assert metrics(tmp_path)["stopped"] == "by file" and metrics(tmp_path)["best_epoch"] == 1
    assert len(words.after) == 2
    assert torch.equal(load_model(tmp_path / "models").decoder.word.weight, words.after[1])


def test_a_stopped_run_that_could_not_be_published_stays_stopped(
    data: dict[str, Path], tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.after.append(stop_after(tmp_path, 8))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Sidecar, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path, data, small_parameters())
    (tmp_path / "models.partial/STOP").unlink()
    run(tmp_path, data, small_parameters())
    assert metrics(tmp_path)["stopped"] == "by file" and len(history_numbers(tmp_path)) == 1
