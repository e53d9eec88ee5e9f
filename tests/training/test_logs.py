"""Learning curves: DVCLive's files and TensorBoard's, also of a run that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.training.logs import CURVES, TENSORBOARD, EpochLog, write_metrics
from tests.training.cuts import power_cut
from tests.training.runs import Runs
from tests.training.small import history_numbers, run, small_parameters, with_runtime
from tests.training.test_resume import wait_for_state

ROWS = [
    {"epoch": 0, "val_cross_entropy": 3.5, "val_token_accuracy": 0.25},
    {"epoch": 1, "train_cross_entropy": 3.25, "val_cross_entropy": 3.0, "val_token_accuracy": 0.5, "tokens": 12},
    {"epoch": 2, "train_reward": 0.123456789, "val_cross_entropy": 3.125, "val_token_accuracy": 0.75, "samples": 7},
]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the event files of a folder hold: tag -> step and value."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_files_by_hand(tmp_path: Path) -> None:
    (tmp_path / CURVES).mkdir(parents=True)
    (tmp_path / CURVES / "old.tsv").write_text("step\told\n1\t2\n")
    with EpochLog(tmp_path, tensorboard=True) as log:
        for row in ROWS:
            log.add(row)
    curves = {path.stem: path.read_text() for path in (tmp_path / CURVES).iterdir()}
    assert curves == {
        "train_cross_entropy": "step\ttrain_cross_entropy\n1\t3.25\n",
        "train_reward": "step\ttrain_reward\n2\t12.3457\n",
        "val_cross_entropy": "step\tval_cross_entropy\n0\t3.5\n1\t3.0\n2\t3.125\n",
        "val_token_accuracy": "step\tval_token_accuracy\n0\t25.0\n1\t50.0\n2\t75.0\n",
        "tokens": "step\ttokens\n1\t12\n",
        "samples": "step\tsamples\n2\t7\n",
    }
    found = scalars(tmp_path / TENSORBOARD)
    assert found["val/token_accuracy"] == [(0, 25.0), (1, 50.0), (2, 75.0)] and found["train/cross_entropy"] == [
        (1, 3.25)
    ]


def test_metrics_are_the_best_epochs(tmp_path: Path) -> None:
    write_metrics(tmp_path, ROWS, 2, "patience", 9)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "best_epoch": 2,
        "epochs": 2,
        "parameters": 9,
        "train_reward": 12.3457,
        "val_cross_entropy": 3.125,
        "val_token_accuracy": 75.0,
        "val_perplexity": 22.7599,
        "stopped": "patience",
    }


def test_tensorboard(data: dict[str, Path], tmp_path: Path) -> None:
    """The curves of DVCLive, none twice after a cut; no files without the parameter, and the same model."""
    parameters = with_runtime(small_parameters(epochs=2, tensorboard=True), checkpoint_seconds=0)
    with power_cut(8):
        run(tmp_path / "with", data, parameters)
    run(tmp_path / "with", data, parameters)
    rows, found = history_numbers(tmp_path / "with"), scalars(tmp_path / "with/results" / TENSORBOARD)
    assert {tag.replace("/", "_") for tag in found} == set(rows[0]) - {"epoch"} and len(rows) == 2
    for tag, points in found.items():
        wanted = [(row["epoch"], pytest.approx(row[tag.replace("/", "_")], rel=1e-5)) for row in rows]
        assert points == wanted, tag
    run(tmp_path / "without", data, small_parameters(epochs=2))
    assert not (tmp_path / "without/results" / TENSORBOARD).exists()
    for name in ("models/model.safetensors", "models/config.json", "results/metrics.json"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_curves_stand_while_a_run_is_at_work_and_nothing_is_committed(
    runs: Runs, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with its curves written; the same run then ends with those of an uninterrupted one."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for command in (["git", "init", "-q"], ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q",
                    "--allow-empty", "-m", "start"]):  # fmt: skip
        subprocess.run(command, check=True)
    parameters = with_runtime(small_parameters(epochs=6, patience=6), checkpoint_seconds=0)
    child = runs.start(folder, data, parameters)
    wait_for_state(folder)
    deadline = time.monotonic() + 60
    while not list((folder / "results").glob(f"{CURVES}/val_cross_entropy.tsv")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    runs.wait(child)
    run(folder, data, parameters)
    assert history_numbers(folder) == history_numbers(run(tmp_path / "whole", data, parameters))
    log = subprocess.run(["git", "log", "--all", "--format=%s"], capture_output=True, text=True, check=True)
    assert log.stdout.split() == ["start"]


def test_tensorboard_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CaptionerError, match="train.tensorboard=true: tensorboard is not installed; pip install"):
        EpochLog(tmp_path, tensorboard=True)


def test_without_dvclive_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "dvclive", None)
    with EpochLog(tmp_path) as log:
        log.add(ROWS[0])
    assert "no learning curves, dvclive is not installed; pip install dvclive" in capsys.readouterr().err
    assert not (tmp_path / CURVES).exists()
