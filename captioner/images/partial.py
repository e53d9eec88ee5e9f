"""A partial download: ``<target>.partial`` and, beside it, the server's description of the file."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.sidecar import sync_folder, write_atomically


class PartialFile:
    """``<target>.partial``, locked exclusively during the ``with`` block and written without a buffer.

    Attributes:
        length: bytes on disk.
        etag, last_modified: the server's validators, None if it sent none.
        total: size of the complete file in bytes, None if the server did not send it.
        resumed: True if the file contains bytes of an earlier connection.

    Raises:
        CaptionerError: another process has locked the file (the message has its pid).
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
        """Delete all bytes, then store the server's description of the new file."""
        os.ftruncate(self._file, 0)  # first, so that old bytes never get new validators
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
            try:  # the previous owner may have renamed the file between our open and lock
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
        valid = isinstance(state, dict) and all(isinstance(state.get(key), kind) for key, kind in kinds.items())
        return state if valid else {}

    def _save(self) -> None:
        state = {
            "url": self.url,
            "etag": self.etag,
            "last_modified": self.last_modified,
            "total": self.total,
            "pid": os.getpid(),
        }
        write_atomically(self.state_path, json.dumps(state, indent=1))
