"""Ranks from torchrun's environment, and several processes on one machine through torch's launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.launch import Rank, launched_by_torchrun, process_count
from captioner.parameters import RuntimeParameters
from tests.data import ROOT

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_single_process_without_torchrun() -> None:
    assert Rank.from_environment() == Rank(0, 1, 0, 1)
    assert Rank.from_environment().is_main and not launched_by_torchrun()


def test_rank_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, "5813"):
        monkeypatch.setenv(name, value)
    assert launched_by_torchrun()
    rank = Rank.from_environment()
    assert rank == Rank(rank=5, world_size=8, local_rank=1, local_world_size=3) and not rank.is_main


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", [None, "", "one", "-1"])
def test_broken_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    for variable, number in zip(VARIABLES, "0101"):
        monkeypatch.setenv(variable, number)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(CaptionerError, match=rf"^{name}\b"):
        Rank.from_environment()


def test_rank_outside_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, number in zip(VARIABLES, "2202"):
        monkeypatch.setenv(variable, number)
    with pytest.raises(CaptionerError, match=r"RANK=2.*WORLD_SIZE=2"):
        Rank.from_environment()


def test_process_count() -> None:
    assert process_count(RuntimeParameters(device="cpu")) == 1
    assert process_count(RuntimeParameters(device="cpu", processes=3)) == 3


def start(folder: Path, work: str, processes: int = 2, arguments: tuple[str, ...] = ()) -> subprocess.Popen:
    """A module that launches itself; its workers run ``work``."""
    (folder / "job.py").write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from captioner.errors import CaptionerError, Interrupted
            from captioner.interrupts import StopSignal
            from captioner.launch import Rank, launch, launched_by_torchrun

            def work():
                rank = Rank.from_environment()
            {work}

            try:
                work() if launched_by_torchrun() else launch("job", {processes})
            except CaptionerError as error:
                error.show()
                sys.exit(error.exit_code)
            """
        ).format(work=textwrap.indent(textwrap.dedent(work), "    "), processes=processes)
    )
    return subprocess.Popen(
        [sys.executable, "-m", "job", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def pids(folder: Path, count: int) -> list[int]:
    """Process ids that the workers wrote to files named after their ranks."""
    files = [folder / str(rank) for rank in range(count)]
    wait_for(lambda: all(file.exists() and file.read_text().endswith(".") for file in files))
    return [int(file.read_text()[:-1]) for file in files]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


ANNOUNCE = 'open(str(rank.rank), "w").write(f"{os.getpid()}.")\n'


def test_workers_know_their_rank_and_arguments(tmp_path: Path) -> None:
    process = start(
        tmp_path, 'open(f"seen{rank.rank}", "w").write(f"{rank} {sys.argv[1:]} {__name__}")', 3, ("--option", "a b")
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    for rank in range(3):
        expected = f"{Rank(rank, 3, rank, 3)} ['--option', 'a b'] __main__"
        assert (tmp_path / f"seen{rank}").read_text() == expected


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        ('raise CaptionerError("features.h5: broken")', ["Error: features.h5: broken", "rank 1 of 2 ended with exit"]),
        ('raise ValueError("a bug")', ["ValueError: a bug", "rank 1 of 2 ended with exit code 1"]),
        ("os.kill(os.getpid(), 9)", ["rank 1 of 2 was ended by SIGKILL"]),
    ],
)
def test_failed_worker_ends_the_run(tmp_path: Path, failure: str, shown: list[str]) -> None:
    work = ANNOUNCE + f"if rank.rank == 1:\n    time.sleep(0.5)\n    {failure}\ntime.sleep(300)"
    process = start(tmp_path, work)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert all(text in errors for text in shown), errors
    assert errors.count("Traceback") == failure.count("ValueError"), errors
    assert not any(alive(pid) for pid in pids(tmp_path, 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_reaches_the_workers(tmp_path: Path, number: signal.Signals) -> None:
    work = f"""
    with StopSignal("work") as stop:
        {ANNOUNCE.strip()}
        while not stop.requested:
            time.sleep(0.05)
        time.sleep(1)
        open(f"saved{{rank.rank}}", "w")
        stop.raise_if_requested()
    """
    process = start(tmp_path, work)
    workers = pids(tmp_path, 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"interrupted by {number.name}" in errors and "Traceback" not in errors
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()
    assert not any(alive(pid) for pid in workers)


def test_killed_launcher_leaves_no_worker(tmp_path: Path) -> None:
    process = start(tmp_path, ANNOUNCE + "time.sleep(300)")
    workers = pids(tmp_path, 2)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not any(alive(pid) for pid in workers), 10)
