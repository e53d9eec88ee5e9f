"""Runs that are interrupted, cut off or refused end with the bytes of an uninterrupted one (killed: see test_kills)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from captioner import teacher_forcing
from captioner.errors import CaptionerError, Interrupted
from captioner.sidecar import Sidecar
from captioner.training import checkpoint
from captioner.training.checkpoint import read_state, write_state
from captioner.training.objectives import CrossEntropy
from tests.training.cuts import power_cut
from tests.training.runs import Runs
from tests.training.small import result_bytes, run, small_parameters, with_runtime

PARAMETERS = with_runtime(
    small_parameters(epochs=4, patience=2, plateau_patience=0), checkpoint_seconds=0
)  # a checkpoint after every step


@pytest.fixture(scope="module")
def whole(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return run(tmp_path_factory.mktemp("whole"), data, PARAMETERS)


@pytest.mark.parametrize("stop_after", [1, 5, 8])
def test_resumes_exactly_from_every_kind_of_place(
    data: dict[str, Path], whole: Path, tmp_path: Path, stop_after: int
) -> None:
    """Stopped after so many checkpoints (in the first epoch, after it, in a later one), with the newest one torn."""
    with power_cut(stop_after):
        run(tmp_path, data, PARAMETERS)
    newest = max((tmp_path / "models.partial").glob("*.state"))
    newest.write_bytes(newest.read_bytes()[:-100])
    run(tmp_path, data, PARAMETERS)
    assert result_bytes(tmp_path) == result_bytes(whole)


EVERYTHING: dict[str, Any] = {
    "decoder": "lstm",
    "norm": "batch",
    "epochs": 3,
    "dropout": 0.3,
    "accumulate": 2,
    "ema": 0.8,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "warmup_steps": 5,
    "step_every": 4,
    "cosine": True,
    "plateau_on": ["val_cross_entropy", "val_bleu_4"],  # BLEU-4 stays 0, so that the rates fall
    "plateau_patience": 0,
    "sampling": "linear",
    "sampling_epochs": 2,
    "scst_epochs": 3,
    "scst_learning_rate": 0.01,
    "scst_dropout": True,
    "patience": 2,
}


@pytest.mark.parametrize(("attention", "begun"), [("soft", True), ("hard", False)])
def test_a_run_that_dies_after_every_step_ends_with_the_same_bytes(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str, begun: bool
) -> None:
    """In both phases, between them and between epochs, with all that has a state; also from trained weights."""
    options = {**EVERYTHING, "attention": attention, "hard_reinforce": 0.5}
    if begun:
        shape = {name: EVERYTHING[name] for name in ("decoder", "norm")} | {"attention": attention}
        trained = run(tmp_path / "trained", data, small_parameters(**shape, epochs=1))
        options |= {"init_from": str(trained / "models"), "epochs": 1, "sampling_epochs": 1}
    parameters = with_runtime(small_parameters(**options), checkpoint_seconds=0)
    saved: list[str] = []
    write = checkpoint.write_state
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_state", lambda *rest: (saved.append(rest[1]), write(*rest)))
        whole = result_bytes(run(tmp_path / "whole", data, parameters))
    epochs = {name.split("-")[0] for name in saved}
    assert len(saved) > 12 and len(epochs) > 3
    for name in saved:
        with power_cut(1):
            run(tmp_path / "cut", data, parameters)
        assert max((tmp_path / "cut/models.partial").glob("*.state")).stem == name  # one step further
    assert result_bytes(run(tmp_path / "cut", data, parameters)) == whole


def test_a_state_of_other_layers_is_not_resumed(
    data: dict[str, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As after an update of the code between two runs: tensors of other names or shapes never reach the optimizer."""
    monkeypatch.setattr(Sidecar, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data, PARAMETERS)
    monkeypatch.undo()
    folder = tmp_path / "models.partial"
    tensors, state = read_state(folder)
    tensors["weights.word.weight"] = tensors["weights.word.weight"][:1].clone()
    write_state(folder, "999999-000000000", tensors, state)
    run(tmp_path, data, PARAMETERS)
    assert "other layers; starting afresh" in capsys.readouterr().err
    assert result_bytes(tmp_path) == result_bytes(whole)


def test_stopped_while_publishing_trains_nothing_again(
    data: dict[str, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sidecar, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data, PARAMETERS)
    monkeypatch.undo()
    monkeypatch.setattr("captioner.training.objectives.CrossEntropy.prepare", None)  # calling it would fail
    run(tmp_path, data, PARAMETERS)
    assert result_bytes(tmp_path) == result_bytes(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "where",
    ["captioner.training.objectives.CrossEntropy.prepare", "captioner.teacher_forcing.token_cross_entropy"],
)
def test_a_signal_finishes_the_step_and_saves(
    data: dict[str, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    """The signal comes in the third training step or in the first validation; nothing else would be saved there."""
    in_training = "prepare" in where
    calls: list[int] = []
    original = CrossEntropy.prepare if in_training else teacher_forcing.token_cross_entropy

    def signalled(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3 or not in_training:
            os.kill(os.getpid(), number)
        return original(*arguments)

    parameters = with_runtime(PARAMETERS, checkpoint_seconds=1e9)
    monkeypatch.setattr(where, signalled)
    with pytest.raises(Interrupted, match="goes on from here") as error:
        run(tmp_path, data, parameters)
    assert error.value.exit_code != 0
    monkeypatch.undo()
    _, state = read_state(tmp_path / "models.partial")
    assert (state["epoch"], state["step"]) == (
        (1, 3) if in_training else (2, 0)
    )  # all of a small validation split is one batch
    run(tmp_path, data, parameters)
    assert result_bytes(tmp_path) == result_bytes(whole)


def wait_for_state(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob("models.partial/*.state")) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_second_process_is_refused(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    child = runs.start(tmp_path, data, small_parameters(epochs=1000, patience=1000))
    try:
        wait_for_state(tmp_path)
        with pytest.raises(CaptionerError, match=f"models.partial: process {child} is at work"):
            run(tmp_path, data, small_parameters(epochs=1000, patience=1000))
    finally:
        os.kill(child, signal.SIGKILL)
        runs.wait(child)


def test_other_facts_start_afresh(
    runs: Runs, data: dict[str, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    child = runs.start(tmp_path, data, small_parameters(seed=5, epochs=1000, patience=1000))
    wait_for_state(tmp_path)
    os.kill(child, signal.SIGKILL)
    runs.wait(child)
    run(tmp_path, data, PARAMETERS)
    assert "unfinished work was for other seed, train; starting afresh" in capsys.readouterr().err
    assert result_bytes(tmp_path) == result_bytes(whole)


def test_an_unwritable_folder_is_one_line(data: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be\n")
    with pytest.raises(CaptionerError) as error:
        run(tmp_path / "models", data, small_parameters(epochs=1))
    assert "\n" not in error.value.message
    assert os.path.exists(tmp_path / "models")
