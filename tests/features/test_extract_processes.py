"""Extraction in several processes: kills, signals and resuming."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.features.layout import Layout
from tests.features.conftest import make_images_file, program, run

OPTIONS = {"sync": 0.05, "batch_size": 2, "image_size": 160}


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images_file(tmp_path_factory.mktemp("many") / "images.h5", 300)


@pytest.fixture(scope="module")
def whole(many_images: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file that an uninterrupted single process writes."""
    out = tmp_path_factory.mktemp("whole") / "f.h5"
    assert run(*program(many_images, out, **OPTIONS)).returncode == 0
    return out.read_bytes()


@pytest.mark.parametrize("event", ["launcher killed", "rank 0 killed", "rank 1 killed", "SIGTERM", "SIGINT"])
def test_interrupted_run_is_resumed(many_images: Path, whole: bytes, tmp_path: Path, event: str) -> None:
    out, partial = tmp_path / "f.h5", tmp_path / "f.h5.partial" / "features.h5"
    command, environment = program(many_images, out, runtime={"processes": 2}, **OPTIONS)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def both_at_work() -> bool:
        if not partial.exists():
            return False
        blocks = Layout(partial).done.reshape(-1, 2).all(axis=1)
        return bool(blocks[0::2].any() and blocks[1::2].any())

    wait_for(both_at_work)
    ranks = children(process.pid)
    assert len(ranks) == 2
    if event == "launcher killed":
        process.kill()
    elif event.startswith("rank"):
        subprocess.run(["kill", "-9", str(ranks[int(event.split()[1])])], check=True)
    else:
        process.send_signal(signal.Signals[event])
    errors = process.communicate(timeout=60)[1]
    wait_for(lambda: not any(alive(pid) for pid in ranks), 10)
    expected = {"launcher killed": -signal.SIGKILL, "SIGTERM": 130, "SIGINT": 130}.get(event, 1)
    assert process.returncode == expected, errors
    assert "Traceback" not in errors, errors
    if event.startswith("rank"):
        assert f"rank {event.split()[1]} of 2 was ended by SIGKILL" in errors
    if event.startswith("SIG"):
        assert "everything finished is saved" in errors
    assert not out.exists() and 0 < Layout(partial).done.sum() < 300
    finished = run(command, environment)
    assert finished.returncode == 0 and "going on with unfinished work" in finished.stderr
    assert out.read_bytes() == whole


def test_ranks_that_would_compute_other_features_are_refused(many_images: Path, tmp_path: Path) -> None:
    command, environment = program(many_images, tmp_path / "f.h5", runtime={"processes": 2}, **OPTIONS)
    script = tmp_path / "program.py"
    script.write_text(
        "import os, sys\nif os.environ.get('RANK') == '1':\n    sys.argv[1] = sys.argv[1].replace('fp32', 'bf16')\n"
        + script.read_text()
    )
    finished = run(command, environment)
    assert finished.returncode == 1 and "rank 1 would compute other features than rank 0" in finished.stderr
    assert not (tmp_path / "f.h5").exists()


def test_finished_work_is_not_done_again(many_images: Path, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.h5").write_bytes(whole)
    finished = run(*program(many_images, tmp_path / "f.h5", runtime={"processes": 2}, **OPTIONS))
    assert finished.returncode == 0, finished.stderr
    assert "already there" in finished.stderr and "process 2 of 2" not in finished.stderr
