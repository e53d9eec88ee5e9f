"""A download that is killed, stopped, or runs out of disk resumes and ends with the same bytes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.images import blocks
from captioner.images import download as stage
from tests.images.making import custom_set, hashes, run, skipped

ROOT = Path(__file__).resolve().parents[2]
SCENES = 120
PROGRAM = f"""
import sys
from captioner.errors import CaptionerError
from captioner.images import blocks
from captioner.parameters import RuntimeParameters
from tests.images.making import run
if __name__ == "__main__":
    blocks.BLOCK = 8
    try:
        run(sys.argv[1], "scenes", RuntimeParameters(workers=int(sys.argv[2])), scenes={SCENES})
    except CaptionerError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The outputs of an uninterrupted run."""
    return hashes(run(tmp_path_factory.mktemp("whole") / "out", "scenes", scenes=SCENES))


def start(program, out, workers=1):
    return subprocess.Popen(
        [sys.executable, str(program), str(out), str(workers)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(out):
    """Finished blocks: name -> time of writing in ns."""
    times = {}
    for path in (out / "images.h5.partial").glob("block-*.json"):
        with contextlib.suppress(FileNotFoundError):  # the run has finished and deleted its sidecar
            times[path.name] = path.stat().st_mtime_ns
    return times


def wait_for_blocks(process, out, count):
    while process.poll() is None and len(finished(out)) < count:
        time.sleep(0.005)


def children(pid):
    try:
        numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(number) for number in numbers] + [child for number in numbers for child in children(number)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def kill_and_finish(program, out, expected, kills, seed):
    """Kill ``kills`` runs at random instants of their work, then let one finish."""
    rng = random.Random(seed)
    for _ in range(kills):
        before = finished(out)
        process = start(program, out, rng.choice((1, 2)))
        # somewhere between the first new block and the publication of the outs, in time rather than in blocks
        wait_for_blocks(process, out, min(len(before) + rng.randint(0, 4), SCENES // 8))
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.communicate()
        after = finished(out)
        assert all(after.get(name) == written for name, written in before.items()) or hashes(out) == expected
    before = (
        {} if (out / "images.h5").exists() else finished(out)
    )  # once the outs are there, the sidecar is on its way out
    process = start(program, out, 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert hashes(out) == expected
    if before:
        assert f"{8 * len(before)} done before" in errors, errors
    assert not (out / "images.h5.partial").exists()


def test_killed_at_random_instants(program, expected, tmp_path):
    kill_and_finish(program, tmp_path / "out", expected, 3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_many_random_instants(program, expected, tmp_path, seed):
    """Five times four kills."""
    kill_and_finish(program, tmp_path / "out", expected, 4, seed)


@pytest.mark.parametrize(
    "step", ["create_images", "ImageStore.open", "_write_captions", "_skipped", "Sidecar.publish", "Sidecar.finish"]
)
def test_ended_at_each_step_of_the_end(expected, tmp_path, monkeypatch, step):
    """A kill between any two steps of the assembly, simulated step by step."""

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    name, _, method = step.partition(".")
    for times in range(3 if step == "Sidecar.publish" else 1):
        with monkeypatch.context() as patch:
            target = (getattr(stage, name), method) if method else (stage, name)
            original, calls = getattr(*target), []
            patch.setattr(
                *target, lambda *a, **k: die() if len(calls) == times else (calls.append(1), original(*a, **k))[1]
            )
            with pytest.raises(Killed):
                run(tmp_path / "out", "scenes", scenes=SCENES)
        assert finished(tmp_path / "out"), step
    assert hashes(run(tmp_path / "out", "scenes", scenes=SCENES)) == expected


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "disk"])
def test_a_damaged_block_is_made_again(expected, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "create_images", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", "scenes", scenes=SCENES)
    path = tmp_path / "out" / "images.h5.partial" / "block-00003.bin"
    if damage == "truncate":
        os.truncate(path, 100)
    elif damage == "flip":
        data = path.read_bytes()
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    elif damage == "delete":
        path.unlink()
    else:
        path.with_suffix(".json").write_text('{"images": ')
    before = finished(tmp_path / "out")
    made = []
    original = blocks.BlockMaker.__call__
    monkeypatch.setattr(
        blocks.BlockMaker,
        "__call__",
        lambda self, number, sources: made.append(number) or original(self, number, sources),
    )
    assert hashes(run(tmp_path / "out", "scenes", scenes=SCENES)) == expected
    assert made == [3] and len(before) == SCENES // 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_keeps_the_work(program, expected, tmp_path, number):
    out = tmp_path / "out"
    process = start(program, out, 2)
    wait_for_blocks(process, out, 1)
    for child in children(process.pid):  # a terminal sends Ctrl-C to every process
        if number == signal.SIGINT:
            os.kill(child, number)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "everything finished is saved" in errors and "Traceback" not in errors, errors
    done = len(finished(out))
    assert done >= 1 and not (out / "images.h5").exists()
    process = start(program, out, 1)
    _, errors = process.communicate(timeout=60)
    assert f"{8 * done} done before" in errors and hashes(out) == expected


def test_workers_of_a_killed_run_end_too(program, tmp_path):
    process = start(program, tmp_path / "out", 2)
    wait_for_blocks(process, tmp_path / "out", 1)
    workers = children(process.pid)
    assert workers
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_a_worker_that_dies_is_an_error_with_a_remedy(program, expected, tmp_path):
    process = start(program, tmp_path / "out", 2)
    wait_for_blocks(process, tmp_path / "out", 1)
    worker = next(pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker process died" in errors and "runtime.workers=1" in errors, errors
    assert hashes(run(tmp_path / "out", "scenes", scenes=SCENES)) == expected


def test_two_processes_at_once(program, expected, tmp_path):
    first = start(program, tmp_path / "out")
    wait_for_blocks(first, tmp_path / "out", 1)
    second = start(program, tmp_path / "out")
    _, errors = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert first.returncode == 0 and hashes(tmp_path / "out") == expected
    if second.returncode:  # else the first was done before the second began
        assert second.returncode == 1 and f"process {first.pid} is at work on it" in errors, errors


def test_other_parameters_start_afresh(tmp_path, monkeypatch, capfd):
    table = custom_set(tmp_path / "own", 20)
    monkeypatch.setattr(blocks, "BLOCK", 4)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "create_images", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", captions=table)
    run(tmp_path / "out", captions=table, image_size=32)
    assert "for other image_size; starting afresh" in capfd.readouterr().err
    assert hashes(tmp_path / "out") == hashes(run(tmp_path / "b", captions=table, image_size=32))


def test_a_raised_max_missing_goes_on_with_the_work(tmp_path, capfd):
    """The remedy in the error message must not start over."""
    table = custom_set(tmp_path / "own", 20)
    (tmp_path / "own" / "003.jpg").write_text("no image")
    with pytest.raises(CaptionerError, match="1 of 20 .*003.jpg: not an image of a known format"):
        run(tmp_path / "out", captions=table)
    capfd.readouterr()
    out = run(tmp_path / "out", captions=table, max_missing=0.05)
    assert "20 done before" in capfd.readouterr().err and list(skipped(out)) == ["003.jpg"]


def test_a_folder_that_cannot_be_made(tmp_path):
    table = custom_set(tmp_path / "own", 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptionerError, match="file/out/images.h5.partial: cannot be written"):
        run(tmp_path / "file" / "out", captions=table)


def test_read_only_folder(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the administrator may write into read-only folders")
    table = custom_set(tmp_path / "own", 4)
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(CaptionerError, match="images.h5.partial: cannot be written .*permissions"):
        run(tmp_path / "out", captions=table)


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts (or remounts) a tmpfs with these options."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True)
        if os.geteuid() == 0
        else None
    )
    if mounted is None or mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
    subprocess.run(["umount", disk], check=True)


def test_too_small_a_disk_is_an_error_before_any_work(small_disk, tmp_path):
    with pytest.raises(CaptionerError, match="MB free, about 1.* MB needed .*download.limit"):
        run(tmp_path / "disk" / "out", "scenes", scenes=SCENES)
    assert not finished(tmp_path / "disk" / "out")


def test_a_disk_that_fills_up(small_disk, tmp_path, monkeypatch, expected):
    """The estimate was too low: an error, no partial output, and the work resumes with more space."""
    monkeypatch.setattr(stage, "_check_disk", lambda *_: None)
    monkeypatch.setattr(blocks, "BLOCK", 8)
    out = tmp_path / "disk" / "out"
    with pytest.raises(CaptionerError, match="cannot be written .*No space left"):
        run(out, "scenes", scenes=SCENES)
    done = len(finished(out))
    assert done and hashes(out) == {}
    small_disk("size=2m")  # room for the blocks or for the whole file, hardly for both
    try:
        run(out, "scenes", scenes=SCENES)
    except CaptionerError as error:
        assert "No space left" in error.message and hashes(out) == {}
    small_disk("size=30m")
    assert hashes(run(out, "scenes", scenes=SCENES)) == expected


def test_read_only_disk(small_disk, tmp_path):
    small_disk("ro")
    with pytest.raises(CaptionerError, match="cannot be written .*Read-only"):
        run(tmp_path / "disk" / "out", "scenes", scenes=SCENES)
