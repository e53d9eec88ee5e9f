"""Sidecar: resumes with the same facts, starts over with others, one process at a time, atomic outputs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from captioner.errors import CaptionerError
from captioner.sidecar import Sidecar, write_atomically


def test_same_facts_go_on_and_other_facts_start_afresh(tmp_path, capsys) -> None:
    out = tmp_path / "out.h5"
    with Sidecar(out, {"seed": 1}) as work:
        assert not work.resumed
        work.path("block").write_text("1")
    with Sidecar(out, {"seed": 1}) as work:
        assert work.resumed and work.path("block").read_text() == "1"
    with Sidecar(out, {"seed": 2}) as work:
        assert not work.resumed and not work.path("block").exists()
    assert "other seed; starting afresh" in capsys.readouterr().err


def test_publish_replaces_and_finish_leaves_nothing(tmp_path) -> None:
    out = tmp_path / "out.txt"
    out.write_text("old")
    with Sidecar(out, {}) as work:
        work.path("draft").write_text("new")
        assert out.read_text() == "old"
        work.publish("draft", out)
        work.finish()
    assert out.read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_is_published_over_a_filled_one(tmp_path) -> None:
    out = tmp_path / "models"
    out.mkdir()
    (out / "stale").write_text("old")
    with Sidecar(out, {}) as work:
        work.path("models").mkdir()
        (work.path("models") / "fresh").write_text("new")
        work.publish("models", out)
        work.finish()
    assert [path.name for path in out.iterdir()] == ["fresh"]


def test_a_second_process_is_refused_with_the_holders_pid(tmp_path) -> None:
    code = textwrap.dedent(
        """
        import sys
        from captioner.sidecar import Sidecar
        with Sidecar(sys.argv[1], {}):
            print("held", flush=True)
            sys.stdin.read()
        """
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(CaptionerError, match=f"process {holder.pid} is at work"):
            Sidecar(tmp_path / "out", {}).__enter__()
    finally:
        holder.communicate("")
    with Sidecar(tmp_path / "out", {}):  # the lock dies with its process
        pass


def test_torn_facts_are_not_resumed(tmp_path) -> None:
    with Sidecar(tmp_path / "out", {"a": 1}) as work:
        work.path("block").write_text("1")
        work.path("fingerprint.json").write_text('{"a":')
    with Sidecar(tmp_path / "out", {"a": 1}) as work:
        assert not work.resumed and not work.path("block").exists()


def test_an_unwritable_place_is_a_one_line_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptionerError, match="cannot be written"):
        Sidecar(tmp_path / "file" / "out", {}).__enter__()


def test_write_atomically_keeps_the_old_file_when_the_write_fails(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_many_processes_one_after_the_other_never_trip_over_the_end_of_another(tmp_path) -> None:
    """A process that starts while another deletes its sidecar starts over or is refused; neither fails."""
    code = textwrap.dedent(
        """
        import os, sys
        from captioner.errors import CaptionerError
        from captioner.sidecar import Sidecar
        done = refused = 0
        while done < 150:
            try:
                with Sidecar(sys.argv[1], {}) as work:
                    own = work.path("draft")
                    own.write_text(str(os.getpid()))
                    assert own.read_text() == str(os.getpid())
                    work.publish("draft", sys.argv[1])
                    work.finish()
                done += 1
            except CaptionerError as error:
                assert "is at work on it" in error.message, error.message
                refused += 1
        """
    )
    out = tmp_path / "out"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(out)], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
