"""Unfinished work: a locked, fingerprinted folder beside the output.

DVC deletes a stage's outs before the stage runs, so unfinished work cannot be kept inside them. It is kept in
``<out>.partial/``, together with the facts that determine the result. A run with the same facts resumes it; a run with
other facts starts over and reports which ones differ.
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
_MAX_ATTEMPTS = 100  # after so many it is no race: a file or a dangling link is in the folder's place


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
    """Write ``data`` (str as UTF-8) to a temporary file, fsync it, and rename it to ``path``.

    A reader sees the complete old or the complete new file.
    """
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
        out: the file or folder that the work produces.
        facts: everything that determines the result, JSON-serialisable; no path, time or device.

    Attributes:
        folder: the sidecar folder, for the caller's files.
        fingerprint: SHA-256 (hex) of the facts.
        resumed: True if unfinished work with the same facts was found.

    Raises:
        CaptionerError: another process has locked the sidecar (the message has its pid), or the folder is not
            writable.
    """

    def __init__(self, out: str | Path, facts: dict[str, Any]) -> None:
        self.out = Path(out)
        self.folder = self.out.with_name(self.out.name + ".partial")
        self.facts = json.loads(json.dumps(facts))  # tuples become lists, as when read from the file
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
                f"{self.folder}: cannot be written ({error.strerror}); free the disk or fix its permissions and run "
                "again"
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
        if out.is_dir() and not out.is_symlink():  # rename cannot replace a folder that is not empty
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
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process may already use the folder again
                raise

    def _acquire(self) -> None:
        attempts = 0
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path(_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except (FileNotFoundError, FileExistsError):  # the previous owner of the lock may delete the folder
                attempts += 1
                if attempts == _MAX_ATTEMPTS:
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
            try:  # the previous owner may have deleted the folder between our open and lock
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
        """Delete everything but the lock; the facts first, so that a partly deleted folder is never resumed."""
        self.path(_FACTS).unlink(missing_ok=True)
        for path in list(self.folder.iterdir()):
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
