"""``python -m stages.train`` in several processes: how it starts them, and what happens when one of them dies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import ProcessFailure
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from captioner.errors import CaptionerError
from captioner.launch import launch
from tests.training.launching import TrainWorkspace, until, workers
from tests.training.runs import Runs, alive, torchrun_environments
from tests.training.small import result_bytes, small_parameters, with_runtime

# each rank draws words of its own, so a resumed run must have the generator of every rank
SAMPLING = {"sampling": "linear", "sampling_epochs": 4, "sampling_rate": 0.5}
PARAMETERS = with_runtime(small_parameters(epochs=8, patience=8, **SAMPLING), checkpoint_seconds=0, processes=2)


@pytest.fixture(scope="module")
def whole(data: dict[str, Path], runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted run of two ranks, which nothing but torchrun's variables told to be two."""
    folder = tmp_path_factory.mktemp("whole")
    processes = [
        runs.start(folder, data, PARAMETERS, environment, folder / "log") for environment in torchrun_environments(2)
    ]
    assert [runs.wait(process) for process in processes] == [0, 0], (folder / "log").read_text()
    return result_bytes(folder)


@pytest.fixture
def workspace(data: dict[str, Path], tmp_path: Path) -> TrainWorkspace:
    return TrainWorkspace(tmp_path, data, PARAMETERS)


def result_of(workspace: TrainWorkspace) -> dict[str, bytes]:
    folder = workspace.folder
    if (folder / "results/train").exists():
        shutil.copytree(folder / "results/train", folder / "results", dirs_exist_ok=True)
    return result_bytes(folder)


def begin(workspace: TrainWorkspace) -> tuple[subprocess.Popen[bytes], dict[int, int]]:
    """A run of two ranks that has saved two checkpoints: its launcher and the process id of each rank."""
    launcher = workspace.start()
    until(lambda: len(workspace.checkpoints()) == 2 or launcher.poll() is not None)
    assert launcher.poll() is None, workspace.text()
    ranks = workers(launcher.pid)
    assert sorted(ranks) == [0, 1]
    return launcher, ranks


def errors(workspace: TrainWorkspace, log: str = "log") -> list[str]:
    return [line for line in workspace.text(log).splitlines() if line.startswith("Error: ")]


def test_the_stage_starts_its_processes(workspace: TrainWorkspace, whole: dict[str, bytes]) -> None:
    assert workspace.start().wait(120) == 0, workspace.text()
    assert "train: 2 processes, gloo" in workspace.text()
    assert workspace.text().count("train epoch 1/8: ") == 2  # one rank shows progress: a line at the start and the end
    assert result_of(workspace) == whole
    assert not (workspace.folder / "models.partial").exists()


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_the_next_one_goes_on(
    workspace: TrainWorkspace, whole: dict[str, bytes]
) -> None:
    launcher, ranks = begin(workspace)
    began = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    assert launcher.wait(60) == 1
    assert time.monotonic() - began < 60 and not alive(ranks[0])
    assert errors(workspace)[-1] == "Error: stages.train: rank 1 of 2 was ended by SIGKILL"
    assert not (workspace.folder / "models").exists() and workspace.checkpoints()
    assert "going on with unfinished work" in workspace.finish()
    assert result_of(workspace) == whole


@pytest.mark.slow
def test_a_killed_rank_0_ends_the_run_and_the_next_one_goes_on(
    workspace: TrainWorkspace, whole: dict[str, bytes]
) -> None:
    launcher, ranks = begin(workspace)
    os.kill(ranks[0], signal.SIGKILL)
    assert launcher.wait(60) == 1 and not alive(ranks[1])
    assert errors(workspace)[-1] == "Error: stages.train: rank 0 of 2 was ended by SIGKILL"
    assert "going on with unfinished work" in workspace.finish()
    assert result_of(workspace) == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_to_the_launcher_saves_and_ends_all(
    workspace: TrainWorkspace, whole: dict[str, bytes], number: signal.Signals
) -> None:
    launcher, ranks = begin(workspace)
    launcher.send_signal(number)
    assert launcher.wait(60) == 130
    assert not any(map(alive, ranks.values()))
    assert f"train: {number.name}; finishing this step and saving" in workspace.text()
    assert errors(workspace)[-1] == f"Error: stages.train: interrupted by {number.name}"
    assert sum("everything finished is saved" in line for line in errors(workspace)) >= 1
    assert "Traceback" not in workspace.text()
    assert "going on with unfinished work" in workspace.finish()
    assert result_of(workspace) == whole


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_rank_saves_and_ends_all(workspace: TrainWorkspace, whole: dict[str, bytes], rank: int) -> None:
    launcher, ranks = begin(workspace)
    os.kill(ranks[rank], signal.SIGTERM)
    assert launcher.wait(60) == 1 and not any(map(alive, ranks.values()))
    assert any("everything finished is saved" in line for line in errors(workspace))
    assert "Traceback" not in workspace.text()
    assert "going on with unfinished work" in workspace.finish()
    assert result_of(workspace) == whole


@pytest.mark.slow
def test_the_ranks_end_with_a_killed_launcher(workspace: TrainWorkspace, whole: dict[str, bytes]) -> None:
    launcher, ranks = begin(workspace)
    launcher.kill()
    assert launcher.wait(60) == -signal.SIGKILL
    assert until(lambda: not any(map(alive, ranks.values())), 10)
    assert "going on with unfinished work" in workspace.finish()
    assert result_of(workspace) == whole


@pytest.mark.slow
def test_torchrun_gives_the_same_bytes(workspace: TrainWorkspace, whole: dict[str, bytes]) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert workspace.start(launcher=launcher).wait(120) == 0, workspace.text()
    assert result_of(workspace) == whole


def test_a_mistake_in_the_inputs_is_shown_once(workspace: TrainWorkspace) -> None:
    next(workspace.folder.glob("data/*/vocab.json")).unlink()
    assert workspace.start().wait(60) == 1
    (line,) = workspace.text().splitlines()
    assert line.startswith("Error: ") and "vocab.json" in line


def test_an_error_of_the_ranks_ends_the_run(workspace: TrainWorkspace) -> None:
    parameters = small_parameters(learning_rate=1e30, projection_learning_rate=1e30, clip=0)
    workspace.set_parameters(with_runtime(parameters, processes=2))
    assert workspace.start().wait(60) == 1
    assert "training: the loss is" in errors(workspace)[0] and "at epoch 1, step" in errors(workspace)[0]
    assert "of 2 ended with exit code 1; its message is above" in errors(workspace)[-1]
    assert "Traceback" not in workspace.text()


@pytest.mark.slow
def test_killed_ten_times(workspace: TrainWorkspace, whole: dict[str, bytes]) -> None:
    generator, kills = random.Random(0), 0
    while kills < 10:
        launcher = workspace.start()
        until(lambda: len(workers(launcher.pid)) == 2, 30)
        time.sleep(generator.uniform(0, 8))
        ranks = workers(launcher.pid)
        os.kill(generator.choice([launcher.pid, *ranks.values()]), signal.SIGKILL)
        kills += launcher.wait(60) != 0
        assert until(lambda: not any(map(alive, ranks.values())), 30)
        shutil.rmtree(workspace.folder / "models", ignore_errors=True)
    workspace.finish()
    assert result_of(workspace) == whole


def test_a_rank_ended_by_a_signal_is_named_before_those_that_lost_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = {rank: ProcessFailure(rank, 1, code, "<N/A>") for rank, code in enumerate((1, -signal.SIGKILL, 1))}

    def fail(*_: object) -> None:
        raise ChildFailedError("python", failures)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: fail)
    with pytest.raises(CaptionerError, match="^stages.train: rank 1 of 3 was ended by SIGKILL$"):
        launch("stages.train", 3)
