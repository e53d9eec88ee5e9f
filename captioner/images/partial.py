"""A download in progress: ``<target>.partial`` and, beside it, what the server said of the file these bytes belong
to."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.sidecar import sync_folder, write_atomically


class PartialFile:
    """``<target>.partial``, held under an exclusive lock for the life of the ``with`` block, written without a buffer.

    Attributes:
        length: bytes that are on the disk.
        etag, last_modified: the server's validators for them, None where it gave none.
        total: length of the whole file in bytes as the server stated it, None where it did not.
        resumed: True when bytes of an earlier connection are in the file.

    Raises:
        CaptionerError: another process holds the file (its pid is named).
        OSError: the folder or file cannot be written.
    """

    def __init__(self, target: Path, url: str) -> None:
        self.target, self.url = target, url
        self.path = target.with_name(target.name + ".partial")
        self.state_path = target.with_name(target.name + ".partial.json")
        self.etag: str | None = None
        self.last_modified: str | None = None
        self.total: int | None = None
        self.length = 0
        self.resumed = False
        self._file = -1

    def __enter__(self) -> PartialFile:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            self._load()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def restart(self, etag: str | None = None, last_modified: str | None = None, total: int | None = None) -> None:
        """Drop every byte, then note what the server says of the file that follows."""
        os.ftruncate(self._file, 0)  # before the new validators, which must never stand beside old bytes
        self.length, self.resumed = 0, False
        self.etag, self.last_modified, self.total = etag, last_modified, total
        self._save()

    def append(self, block: bytes) -> None:
        """Write ``block`` at the end."""
        view = memoryview(block)
        while view:
            written = os.pwrite(self._file, view, self.length)
            self.length += written
            view = view[written:]

    def publish(self) -> None:
        """fsync, then rename to the target."""
        os.fsync(self._file)
        os.replace(self.path, self.target)
        sync_folder(self.target.parent)
        self.state_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the file and its state."""
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)

    def _lock(self) -> None:
        while True:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._file)
                holder = self._read_state().get("pid", "unknown")
                raise CaptionerError(
                    f"{self.path}: process {holder} is downloading it; wait for it or stop it, then run again"
                ) from None
            try:  # the holder before us may have finished and renamed the file between open and lock
                if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                    return
            except FileNotFoundError:
                pass
            os.close(self._file)

    def _load(self) -> None:
        self.length = os.fstat(self._file).st_size
        state = self._read_state()
        if state.get("url") != self.url:
            return self.restart()
        self.etag, self.last_modified, self.total = (state.get(key) for key in ("etag", "last_modified", "total"))
        self.resumed = self.length > 0
        self._save()  # now with this process' pid

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state_path.read_bytes())
        except (OSError, ValueError):
            return {}
        kinds = {"url": str, "etag": str | None, "last_modified": str | None, "total": int | None, "pid": int}
        sound = isinstance(state, dict) and all(isinstance(state.get(key), kind) for key, kind in kinds.items())
        return state if sound else {}

    def _save(self) -> None:
        state = {
            "url": self.url,
            "etag": self.etag,
            "last_modified": self.last_modified,
            "total": self.total,
            "pid": os.getpid(),
        }
        write_atomically(self.state_path, json.dumps(state, indent=1))
