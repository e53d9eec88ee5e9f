"""Work in progress: a locked, fingerprinted folder beside the file that it will become.

DVC deletes a stage's outs before the stage runs, so unfinished work cannot live inside them. It lives in
``<out>.partial/`` with the facts it was computed from. A run with the same facts goes on with it; a run with others
starts afresh and says so.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import click

from captioner.errors import CaptionerError
from captioner.fingerprint import fingerprint

_FACTS, _LOCK = "fingerprint.json", "lock"
_MISSES = 100  # that many are no race with another process but a file or a dangling link in the folder's place


def sync_folder(folder: str | Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: str | Path) -> None:
    """fsync one file by name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` (str as UTF-8) beside ``path``, fsync it, and rename it over ``path``: a reader sees old or new,
    whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + f".{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class Sidecar:
    """``<out>.partial/``, held under an exclusive lock for the life of the ``with`` block.

    Args:
        out: the file or folder that the finished work becomes.
        facts: everything that determines the result, JSON-serialisable; no path, time or device.

    Attributes:
        folder: the sidecar folder; the caller keeps whatever it needs there.
        fingerprint: SHA-256 (hex) of the facts.
        resumed: True where work with the same facts was found.

    Raises:
        CaptionerError: another process holds the sidecar (its pid is named), or the folder cannot be written.
    """

    def __init__(self, out: str | Path, facts: dict[str, Any]) -> None:
        self.out = Path(out)
        self.folder = self.out.with_name(self.out.name + ".partial")
        self.facts = json.loads(json.dumps(facts))  # tuples as the lists that come back from the file
        self.fingerprint = fingerprint(facts)
        self.resumed = False
        self._lock: int | None = None

    def __enter__(self) -> Sidecar:
        try:
            self._acquire()
            self._open()
        except OSError as error:
            self._release()
            raise CaptionerError(
                f"{self.folder}: cannot be written ({error.strerror}); free the disk or mend its permissions and run again"
            ) from error
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def path(self, name: str) -> Path:
        """The path of ``name`` inside the sidecar."""
        return self.folder / name

    def publish(self, name: str, out: str | Path) -> None:
        """Move the finished file or folder ``name`` out of the sidecar to ``out``: fsync, then one rename."""
        source, out = self.path(name), Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in [source, *(source.rglob("*") if source.is_dir() else ())]:
            sync_file(path)
        if out.is_dir() and not out.is_symlink():  # a folder cannot be renamed over a filled one
            old = self.path(f"{name}.replaced")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out, old)
        os.replace(source, out)
        sync_folder(out.parent)

    def finish(self) -> None:
        """Delete the sidecar after everything in it was published."""
        self._clear()
        self.path(_LOCK).unlink()
        try:
            self.folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # from here on another process may have begun in it
                raise

    def _acquire(self) -> None:
        misses = 0
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path(_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except (FileNotFoundError, FileExistsError):  # a holder before us may delete the folder at any moment
                misses += 1
                if misses == _MISSES:
                    raise
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(lock)
                raise CaptionerError(
                    f"{self.folder}: process {holder} is at work on it; wait for it or stop it, then run again"
                ) from None
            try:  # the holder before us may have finished and deleted the folder between open and lock
                if os.fstat(lock).st_ino == os.stat(self.path(_LOCK)).st_ino:
                    break
            except FileNotFoundError:
                pass
            os.close(lock)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def _open(self) -> None:
        facts_file = self.path(_FACTS)
        found = None
        if facts_file.exists():
            try:
                found = json.loads(facts_file.read_text())
            except ValueError:
                found = {}
        self.resumed = found == self.facts
        if self.resumed:
            click.echo(f"{self.out}: going on with unfinished work ({self.fingerprint[:12]})", err=True)
            return
        if found is not None:
            changed = sorted(key for key in {*found, *self.facts} if found.get(key) != self.facts.get(key))
            click.echo(
                f"{self.out}: unfinished work was for other {', '.join(changed) or 'facts'}; starting afresh", err=True
            )
        self._clear()
        write_atomically(facts_file, json.dumps(self.facts, indent=1, sort_keys=True))

    def _clear(self) -> None:
        """Delete everything but the lock; the facts first, so that a half-emptied folder is never taken for resumable
        work."""
        self.path(_FACTS).unlink(missing_ok=True)
        for path in list(self.folder.iterdir()):
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
