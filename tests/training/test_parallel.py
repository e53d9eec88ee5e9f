"""Several processes that train together: the same losses, the same weights, and what happens when one of them dies."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.errors import CaptionerError
from captioner.parameters import Parameters, parameters_content, parse_parameters
from captioner.processes import Rank
from captioner.training.batches import Batch, CaptionTable, epoch_batches, share
from captioner.training.inputs import load_inputs
from captioner.training.parallel import Group, process_seed
from captioner.training.state import _restore_generators
from tests.data import ROOT
from tests.training.runs import Runs, alive, children, torchrun_environments
from tests.training.small import make_data, result_bytes, run, small_parameters, with_runtime

SAMPLING = {"sampling": "linear", "sampling_epochs": 4, "sampling_rate": 0.5}  # each process draws words of its own
PARAMETERS = with_runtime(small_parameters(epochs=8, patience=8, **SAMPLING), checkpoint_seconds=0, processes=2)


@pytest.fixture(scope="module")
def whole(data: dict[str, Path], runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    assert runs.wait(runs.start(folder, data, PARAMETERS, log=folder / "log")) == 0, (folder / "log").read_text()
    return folder


def until(happened: Callable[[], bool], seconds: float = 60) -> bool:
    limit = time.monotonic() + seconds
    while not happened() and time.monotonic() < limit:
        time.sleep(0.01)
    return happened()


def table(lengths: list[int]) -> CaptionTable:
    """One caption of so many tokens to predict for each picture."""
    tokens = np.zeros((len(lengths) + 1, max(lengths) + 1), dtype=np.int64)
    for row, length in zip(tokens, lengths):
        row[: length + 1] = 5
    return CaptionTable(np.arange(len(lengths)), tokens, np.arange(len(lengths)))


def test_shares_by_hand() -> None:
    """7 tokens (picture 2) to the first; 5 and 4 (3 and 1) to the second; 3 (4) to the first, and 3 (0) to the second,
    which has 9 against 10."""
    batch = Batch(np.array([4, 0, 2, 1, 3]), np.array([[4], [0], [2], [1], [3]]), np.array([1, 0, 0, 1, 0]))
    captions = table([3, 4, 7, 5, 3])
    first, second = (share(batch, captions, rank, 2) for rank in range(2))
    assert first.images.tolist() == [4, 2] and second.images.tolist() == [0, 1, 3]
    assert first.views.tolist() == [1, 0] and first.captions.tolist() == [[4], [2]]
    assert [captions.targets[part.captions].sum() for part in (first, second)] == [10, 12]
    assert share(batch, captions, 0, 1) is batch
    shares = [share(batch, captions, rank, 7) for rank in range(7)]
    assert [part is None for part in shares] == [False] * 5 + [True] * 2


def test_shares_are_the_batch_and_balanced(data: dict[str, Path]) -> None:
    inputs = load_inputs(small_parameters(), *(data[name] for name in ("features", "captions", "vocab", "embeddings")))
    for batch in epoch_batches(inputs.train, 64, 0, 2, 1, 1):
        for world in (2, 3, 4):
            parts = [share(batch, inputs.train, rank, world) for rank in range(world)]
            for name in ("images", "views"):
                assert sorted(np.concatenate([getattr(part, name) for part in parts])) == sorted(getattr(batch, name))
            together = np.concatenate([part.captions for part in parts])
            assert sorted(map(tuple, together)) == sorted(map(tuple, batch.captions))
            place = {image: row for row, image in enumerate(batch.images.tolist())}
            for part in parts:  # a picture keeps its captions and its view
                rows = [place[image] for image in part.images.tolist()]
                assert np.array_equal(part.captions, batch.captions[rows]) and np.array_equal(
                    part.views, batch.views[rows]
                )
            work = [inputs.train.targets[part.captions].sum() for part in parts]
            assert max(work) - min(work) <= inputs.train.targets[batch.captions].sum(1).max()


def test_operations_of_a_group_by_hand(runs: Runs, tmp_path: Path) -> None:
    processes = [
        runs.call("tests.training.parallel_tasks", "operate", (tmp_path,), place, tmp_path / "log")
        for place in torchrun_environments(3)
    ]
    assert [runs.wait(process) for process in processes] == [0] * 3, (tmp_path / "log").read_text()
    for rank in range(3):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["sums"] == [
            [figures, [[4, 8], [12, 16]], [3, 3, 3], 0, [True, False]] for figures in (111.0, 111.0, [111.0, 3.0])
        ]
        assert found["agree"] == [True, False] and found["all_reduce"] == [3, 4.5] and found["broadcast"] == [5]
        assert found["broadcast_bytes"] == "from 0" and found["gather_bytes"] == ["", "x", "xx"]


def test_processes_draw_differently_and_again_the_same() -> None:
    places = [(seed, rank, epoch, step) for seed in (1, 2) for rank in (1, 2) for epoch in (1, 2) for step in (0, 1)]
    seeds = {process_seed(*place) for place in places}
    assert len(seeds) == len(places) and process_seed(1, 2, 1, 0) == process_seed(1, 2, 1, 0)


def test_a_process_takes_its_own_generator_from_a_state() -> None:
    with torch.random.fork_rng([]):
        states = {}
        for number, name in enumerate(("cpu", "cpu.1")):
            torch.manual_seed(number)
            states[name] = torch.get_rng_state()
        for rank, seed in ((0, 0), (1, 1), (2, 77)):  # the third is not in the state: it is seeded
            _restore_generators(states, Group(Rank(rank, 3)), 77)
            assert torch.rand(()).item() == torch.rand((), generator=torch.Generator().manual_seed(seed)).item()


CASES = {
    "whole pictures": {"dropout": 0.0, "doubly_stochastic": 1.0, "label_smoothing": 0.1, "epochs": 3, "clip": 0.5},
    "empty shares": {
        "dropout": 0.0,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "projection_learning_rate": 0.1,
        "batch_size": 3,
        "captions_per_image": 1,
        "accumulate": 2,
        "epochs": 2,
        "ema": 0.9,
    },
    "batch norm": {
        "dropout": 0.0,
        "norm": "batch",
        "batch_size": 3,
        "captions_per_image": 1,
        "accumulate": 2,
        "epochs": 1,
        "ema": 0.9,
        "layers": 2,
        "tie_weights": True,
        "tune_embeddings": True,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "projection_learning_rate": 0.1,
        "scst_epochs": 1,
        "scst_learning_rate": 0.01,
    },
    "self-critical": {"dropout": 0.0, "epochs": 1, "scst_epochs": 2, "scst_learning_rate": 0.01, "clip": 0.01},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_do_not_depend_on_the_number_of_processes(
    runs: Runs, data: dict[str, Path], tmp_path: Path, case: str
) -> None:
    """In float64, where what is left is rounding. The norm is clipped, so it must be that of the summed gradient."""
    parameters = small_parameters(**CASES[case])
    losses, figures = {}, {}
    for world in (1, 2, 4):
        folder = tmp_path / str(world)
        folder.mkdir()
        processes = [
            runs.call("tests.training.parallel_tasks", "record", (folder, data, parameters), place, folder / "log")
            for place in torchrun_environments(world)
        ]
        assert [runs.wait(process) for process in processes] == [0] * world, (folder / "log").read_text()
        seen = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]
        assert all(steps == seen[0] for steps in seen)  # weights too, bit by bit, after each step
        losses[world] = [loss for loss, *_ in seen[0]]
        with open(folder / "results/history.csv") as file:
            figures[world] = [
                {name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)
            ]
    assert len(losses[1]) >= 20 and len(set(losses[1])) > 10
    for world in (2, 4):
        assert losses[world] == pytest.approx(losses[1], abs=1e-5, rel=0)
        assert figures[world] == [pytest.approx(row, rel=1e-5, nan_ok=True) for row in figures[1]]
    if case == "empty shares":
        inputs = load_inputs(parameters, *(data[name] for name in ("features", "captions", "vocab", "embeddings")))
        batches = epoch_batches(inputs.train, 3, 1, 2, 1, 1)
        assert all(share(batch, inputs.train, 3, 4) is None for batch in batches)


def test_scores_of_validation_do_not_depend_on_the_number_of_processes(runs: Runs, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=400)  # 80 validation pictures are two lots of the search
    parameters = small_parameters(epochs=1, batch_size=64, select_by="val_cider_d", dropout=0.0, learning_rate=0.05)
    rows = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        processes = [
            runs.call("tests.training.parallel_tasks", "record", (folder, data, parameters), place, folder / "log")
            for place in torchrun_environments(world)
        ]
        assert [runs.wait(process) for process in processes] == [0] * world, (folder / "log").read_text()
        rows.append((folder / "results/history.csv").read_text())
    assert rows[0] == rows[1] and float(rows[0].split(",")[-2]) > 0


def test_torchrun_gives_the_same_bytes(data: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom captioner.parameters import parse_parameters\nfrom tests.training.small import run\n"
        "folder, data, content = json.loads(sys.argv[1])\n"
        "run(Path(folder), {name: Path(path) for name, path in data.items()}, parse_parameters(content))\n"
    )
    task = json.dumps([str(tmp_path), {name: str(path) for name, path in data.items()}, parameters_content(PARAMETERS)])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        task,
    ]
    finished = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert result_bytes(tmp_path) == result_bytes(whole)


def errors(log: Path) -> list[str]:
    """What was said of faults; a run's progress left out."""
    return [
        line for line in log.read_text().splitlines() if "Error" in line or "Interrupted" in line or "Traceback" in line
    ]


def begin(runs: Runs, data: dict[str, Path], folder: Path) -> tuple[int, int]:
    """A run of two processes that has saved a state: the numbers of rank 0 and rank 1."""
    leader = runs.start(folder, data, PARAMETERS, log=folder / "log")
    assert until(lambda: len(list(folder.glob("models.partial/*.state"))) == 2), (folder / "log").read_text()
    (other,) = children(leader)
    return leader, other


def go_on(runs: Runs, data: dict[str, Path], folder: Path, parameters: Parameters) -> None:
    """Finish what a run has begun."""
    assert runs.wait(runs.start(folder, data, parameters, log=folder / "again")) == 0
    assert "going on with unfinished work" in (folder / "again").read_text()


def test_a_killed_process_is_named_and_the_next_run_goes_on(
    runs: Runs, data: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    leader, other = begin(runs, data, tmp_path)
    began = time.monotonic()
    os.kill(other, signal.SIGKILL)
    assert runs.wait(leader) == 1
    assert time.monotonic() - began < 30
    (line,) = errors(tmp_path / "log")
    assert "training process 1 of 2 (from 0) ended without a word" in line and "run the same command again" in line
    assert not (tmp_path / "models").exists()
    go_on(runs, data, tmp_path, PARAMETERS)
    assert result_bytes(tmp_path) == result_bytes(whole)


def test_all_killed_and_resumed(runs: Runs, data: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    leader, other = begin(runs, data, tmp_path)
    os.kill(leader, signal.SIGKILL)
    assert runs.wait(leader) == -signal.SIGKILL
    assert until(lambda: not alive(other), 30)
    go_on(runs, data, tmp_path, PARAMETERS)
    assert result_bytes(tmp_path) == result_bytes(whole)


@pytest.mark.parametrize("target", ["rank 0", "rank 1"])
def test_a_signal_to_any_process_saves_and_ends_all(
    runs: Runs, data: dict[str, Path], whole: Path, tmp_path: Path, target: str
) -> None:
    leader, other = begin(runs, data, tmp_path)
    os.kill(leader if target == "rank 0" else other, signal.SIGTERM)
    assert runs.wait(leader) == 130
    assert not alive(other)
    (line,) = errors(tmp_path / "log")
    assert "everything finished is saved" in line
    if target == "rank 0":
        go_on(runs, data, tmp_path, PARAMETERS)
        assert result_bytes(tmp_path) == result_bytes(whole)
    else:  # one process goes on with what two have begun
        go_on(runs, data, tmp_path, with_runtime(PARAMETERS, processes=1))
        assert (tmp_path / "models/config.json").read_bytes() == (whole / "models/config.json").read_bytes()


def test_under_torchrun_the_others_end_with_rank_0(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    processes = [
        runs.start(tmp_path, data, PARAMETERS, place, tmp_path / f"log{rank}")
        for rank, place in enumerate(torchrun_environments(2))
    ]
    assert until(lambda: bool(list(tmp_path.glob("models.partial/*.state"))))
    os.kill(processes[0], signal.SIGKILL)
    assert [runs.wait(process) for process in processes] == [-signal.SIGKILL, 1]
    assert "training process 0 of 2 ended without a word" in (tmp_path / "log1").read_text()


def test_other_inputs_in_another_process_are_refused(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", views=2, seed=3)
    places = torchrun_environments(2)
    processes = [
        runs.start(tmp_path, files, PARAMETERS, places[rank], tmp_path / f"log{rank}")
        for rank, files in enumerate((data, other))
    ]
    assert [runs.wait(process) for process in processes] == [1, 1]
    assert (
        "training process 1 of 2 (from 0) failed: other captions, embeddings, vocabulary"
        in (tmp_path / "log0").read_text()
    )
    assert (tmp_path / "log1").read_text() == ""


def test_what_another_process_cannot_read_is_said_by_rank_0(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    places = torchrun_environments(2)
    files = [data, {**data, "vocab": tmp_path / "absent.json"}]
    processes = [
        runs.start(tmp_path, files[rank], PARAMETERS, places[rank], tmp_path / f"log{rank}") for rank in range(2)
    ]
    assert [runs.wait(process) for process in processes] == [1, 1]
    (line,) = errors(tmp_path / "log0")
    assert "training process 1 of 2 (from 0) failed:" in line and "absent.json" in line
    assert (tmp_path / "log1").read_text() == ""


def test_the_others_end_where_rank_0_does_not_begin(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    places = torchrun_environments(2)
    files = [{**data, "vocab": tmp_path / "absent.json"}, data]
    processes = [
        runs.start(tmp_path, files[rank], PARAMETERS, places[rank], tmp_path / f"log{rank}") for rank in range(2)
    ]
    assert [runs.wait(process) for process in processes] == [1, 1]
    assert "absent.json" in (tmp_path / "log0").read_text()
    assert "CaptionerError: process 0 cannot be reached any more" in (tmp_path / "log1").read_text()


def test_a_process_that_waits_for_ever_ends_too(runs: Runs, tmp_path: Path) -> None:
    """As in a collective operation of NCCL, which a death does not end."""
    processes = [
        runs.call("tests.training.parallel_tasks", "hang", (), place, tmp_path / f"log{rank}")
        for rank, place in enumerate(torchrun_environments(3))
    ]
    assert [runs.wait(process) for process in processes] == [1, 9, 1]
    assert (tmp_path / "log0").read_text().startswith("Error: training process 1 of 3 (from 0) ended without a word")


@pytest.mark.slow
def test_killed_ten_times(runs: Runs, data: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    generator, kills = random.Random(0), 0
    while kills < 10:
        leader = runs.start(tmp_path, data, PARAMETERS, log=tmp_path / "log")
        until(lambda: bool(children(leader)), 10)
        time.sleep(generator.uniform(0, 5))
        victims = [leader, *children(leader)]
        os.kill(generator.choice(victims), signal.SIGKILL)
        kills += runs.wait(leader) != 0
        assert until(lambda: not any(map(alive, victims[1:])), 30)
        if (tmp_path / "models").exists():
            shutil.rmtree(tmp_path / "models")
    assert runs.wait(runs.start(tmp_path, data, PARAMETERS)) == 0
    assert result_bytes(tmp_path) == result_bytes(whole)


def test_a_loss_that_is_not_finite_ends_all(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    parameters = with_runtime(small_parameters(learning_rate=1e30, projection_learning_rate=1e30, clip=0), processes=2)
    leader = runs.start(tmp_path, data, parameters, log=tmp_path / "log")
    assert runs.wait(leader) == 1
    (line,) = errors(tmp_path / "log")
    assert "training: the loss is" in line and "at epoch 1, step" in line


def test_a_process_that_does_not_start_is_an_error(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CaptionerError, match="training process 1 of 2 ended with status 1"):
        run(tmp_path, data, PARAMETERS)


def test_parameters_reach_the_other_processes() -> None:
    changed: Parameters = small_parameters(plateau_on=["val_cross_entropy", "val_token_accuracy"], epochs=7)
    assert parse_parameters(json.loads(json.dumps(parameters_content(changed)))) == changed
    assert parse_parameters(parameters_content(Parameters())) == Parameters()
