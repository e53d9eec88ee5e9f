"""Syncing beside writing: what is marked when, and a disk that fails."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.features import syncing
from captioner.features.extract import extract
from captioner.features.layout import DEFAULT_FACTS, Layout, create_features
from captioner.features.syncing import SyncedWriter
from captioner.features.writer import FeatureWriter
from tests.features.conftest import ENCODER, quick, runtime

ROW = np.ones((1, 1, 1, 2), np.float16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_features(tmp_path / "f.h5", (4, 1, 1, 2), range(4), DEFAULT_FACTS)
    return tmp_path / "f.h5"


class Disk:
    """In the place of ``os.fdatasync``: each sync takes until the test lets it go on, and then fails or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_end, self.fails, self._sync = threading.Event(), threading.Event(), False, os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, descriptor: int) -> None:
        self.begun.set()
        assert self.may_end.wait(30)
        if self.fails:
            self.fails = False  # the system reports lost bytes once
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(descriptor)


def done(path: Path) -> list[int]:
    return np.flatnonzero(Layout(path).done).tolist()


def wait_for(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.005)


def sync_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sync"]


def test_a_sync_marks_only_rows_written_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    monkeypatch.setattr(syncing, "_SYNC_BYTES", ROW.nbytes)
    with FeatureWriter(path) as writer, SyncedWriter(writer) as synced:
        synced.write(0, ROW)
        assert disk.begun.wait(30)
        monkeypatch.setattr(syncing, "_SYNC_BYTES", 1 << 30)
        monkeypatch.setattr(syncing, "_SYNC_SECONDS", 3600)
        synced.write(2, ROW)  # does not wait
        assert done(path) == []
        disk.may_end.set()
        wait_for(lambda: done(path) == [0])
    assert done(path) == [0, 2] and not sync_threads()


def test_rows_are_synced_when_a_second_is_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "_SYNC_SECONDS", 0.05)
    with FeatureWriter(path) as writer, SyncedWriter(writer) as synced:
        for row in (1, 3):
            synced.write(row, ROW)
            wait_for(lambda row=row: row in done(path))


def test_rows_written_during_the_last_sync_are_marked_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    monkeypatch.setattr(syncing, "_SYNC_BYTES", ROW.nbytes)
    with FeatureWriter(path) as writer, SyncedWriter(writer) as synced:
        synced.write(0, ROW)
        assert disk.begun.wait(30)
        synced.write(1, ROW)
        threading.Timer(0.1, disk.may_end.set).start()
    assert done(path) == [0, 1]


def test_after_a_failed_sync_nothing_is_marked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that were lost may be those of row 1, and the next sync would not say so."""
    disk = Disk(monkeypatch)
    disk.fails = True
    monkeypatch.setattr(syncing, "_SYNC_BYTES", ROW.nbytes)
    message = r"f.h5: cannot be written \(Input/output error\); mend the disk and run again"
    with FeatureWriter(path) as writer:
        with pytest.raises(CaptionerError, match=message), SyncedWriter(writer) as synced:
            synced.write(0, ROW)
            assert disk.begun.wait(30)
            synced.write(1, ROW)
            disk.may_end.set()
            wait_for(lambda: not sync_threads())
            with pytest.raises(CaptionerError, match="cannot be written"):
                synced.write(2, ROW)
        assert done(path) == [] and not sync_threads()


def test_what_was_written_before_the_disk_was_full_is_marked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def full(descriptor: int, data: memoryview, position: int) -> int:
        if len(data) > ROW.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with (
        FeatureWriter(path) as writer,
        pytest.raises(CaptionerError, match="No space left on device.*free the disk and run again"),
        SyncedWriter(writer) as synced,
    ):
        synced.write(0, ROW)
        synced.write(1, ROW.repeat(2, 0))
    assert done(path) == [0] and not sync_threads()


def test_extraction_on_a_disk_that_fails_and_later_not(
    images: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, growing = tmp_path / "f.h5", tmp_path / "f.h5.partial" / "features.h5"
    with monkeypatch.context() as during, pytest.raises(CaptionerError, match="cannot be written"):
        disk = Disk(during)
        disk.fails = True
        disk.may_end.set()
        during.setattr(syncing, "_SYNC_BYTES", 1)
        extract(quick(views=3), runtime(), ENCODER, images, out)
    assert done(growing) == [] and not [
        thread for thread in threading.enumerate() if thread.name.startswith(("sync", "encoder-"))
    ]
    extract(quick(views=3), runtime(), ENCODER, images, out)
    assert out.read_bytes() == plain.read_bytes()
