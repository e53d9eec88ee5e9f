"""Download one large file: resumed, retried, verified, and renamed into place once it is complete."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.errors import CaptionerError
from captioner.images.fetch_many import FetchFailure, fetch_many
from captioner.images.partial import PartialFile
from captioner.images.web import (
    PermanentError,
    TransientError,
    blocks,
    body_length,
    delay_before,
    get,
    open_session,
    pause,
)
from captioner.interrupts import StopSignal
from captioner.progress import Progress

if TYPE_CHECKING:
    import requests

__all__ = ["FetchFailure", "fetch", "fetch_many"]

# An attempt that received this many bytes resets the count of failures: 19 GB over a poor connection may need a hundred
# attempts.
PROGRESS_BYTES = 1 << 20
_LARGE = 1 << 30  # bytes; above this a checksum takes long enough to print a message


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    retries: int,
    timeout: float,
    label: str = "",
    backoff: float = 1.0,
    stop: StopSignal | None = None,
    remedy: str = "",
) -> Path:
    """Download ``url`` to ``target`` unless a file of that size and checksum exists.

    The bytes are written to ``<target>.partial``, under a lock, and survive an interruption. The next call requests the
    rest with Range and If-Range (RFC 9110, sections 13.1.5 and 14.2); it starts over if the server's file has changed
    or the server does not support ranges. Without a given size or checksum an existing ``target`` is accepted.

    Args:
        size: expected size in bytes. md5, sha256: expected checksums (hex). None: not checked.
        retries: consecutive attempts without ``PROGRESS_BYTES`` new bytes before the download fails.
        timeout: seconds without a byte before an attempt fails.
        label: name of the file in progress reports; the file's name by default.
        backoff: seconds before the second attempt; doubles with every further attempt, with jitter.
        stop: checked between blocks; a signal ends the download, which keeps its bytes.
        remedy: advice at the end of error messages.

    Returns:
        ``target``.

    Raises:
        CaptionerError: the server refuses (404, 410, 403 ...), attempts ran out, size or checksum are wrong (the bytes
            are deleted), the disk is too small or cannot be written, or another process downloads the same file.
        Interrupted: a signal arrived.
    """
    target = Path(target).expanduser()
    label = label or target.name
    remedy = remedy or f"get the file in another way and put it at {target}, or point download.root at a local copy"
    check = stop.raise_if_requested if stop is not None else lambda: None
    try:
        if target.exists():
            fault = file_fault(target, size, md5, sha256)
            if not fault:
                return target
            click.echo(f"{target}: has {fault}; downloading it again", err=True)
        with PartialFile(target, url) as partial:
            # another process may have finished it before we got the lock
            if target.exists() and not file_fault(target, size, md5, sha256):
                partial.discard()
                return target
            job = _Download(partial, size, bool(md5 or sha256), timeout, label, check)
            restarted = False
            while True:
                _download(job, retries, backoff, remedy)
                fault = file_fault(partial.path, size, md5, sha256)
                if not fault:
                    partial.publish()
                    return target
                if restarted or not partial.resumed:
                    partial.discard()
                    raise CaptionerError(f"{url}: the download has {fault} and was deleted; {remedy}")
                click.echo(f"{label}: the resumed download has {fault}; starting afresh", err=True)
                restarted = True
                partial.restart()
    except OSError as error:
        path = error.filename or target
        raise CaptionerError(
            f"{path}: cannot be written ({error.strerror}); free the disk or fix its permissions and run again, "
            "or set runtime.download_cache to another folder"
        ) from error


def file_fault(path: Path, size: int | None, md5: str | None, sha256: str | None) -> str:
    """The difference between the file's actual and expected size or checksum; empty if there is none."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"{found:,} bytes instead of {size:,}"
    wanted = {name: digest.lower() for name, digest in (("md5", md5), ("sha256", sha256)) if digest}
    if not wanted:
        return ""
    if found > _LARGE:
        click.echo(f"{path.name}: checking {' and '.join(wanted)} of {found / 1e6:,.0f} MB", err=True)
    digests = {name: hashlib.new(name) for name in wanted}
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            for digest in digests.values():
                digest.update(block)
    got = {name: digest.hexdigest() for name, digest in digests.items()}
    return " and ".join(f"{name} {got[name]} instead of {wanted[name]}" for name in wanted if got[name] != wanted[name])


class _Download:
    """A download in progress; every call of ``attempt`` makes one request for the missing bytes."""

    def __init__(
        self,
        partial: PartialFile,
        size: int | None,
        checksum_known: bool,
        timeout: float,
        label: str,
        check: Callable[[], None],
    ) -> None:
        self.partial, self.size, self.checksum_known = partial, size, checksum_known
        self.timeout, self.label, self.check = timeout, label, check

    @property
    def total(self) -> int | None:
        """Size of the complete file in bytes, None while unknown."""
        return self.size if self.size is not None else self.partial.total

    def attempt(self, session: requests.Session) -> None:
        """Request the missing bytes and append them; returns when the file is complete.

        Raises PermanentError or TransientError.
        """
        partial = self.partial
        if partial.length and (partial.length > (self.total or partial.length) or not self._resumable()):
            partial.restart()
        if partial.length and partial.length == self.total:
            return
        headers = {"Range": f"bytes={partial.length}-"} if partial.length else {}
        if headers and (validator := self._validator()):
            headers["If-Range"] = validator
        with get(session, partial.url, self.timeout, headers) as response:
            if response.status_code != 416:
                if self._accept(response):
                    return self._append(response)
            elif not headers:
                raise PermanentError("HTTP 416 although no range was requested")
            elif _content_range(response)[1] == partial.length:
                return
        # The server cannot resume from these bytes: request the whole file.
        partial.restart()
        self.attempt(session)

    def _accept(self, response: requests.Response) -> bool:
        """Prepare the file for the body of a 200 or 206; False if the body does not continue the existing bytes."""
        partial, length = self.partial, body_length(response)
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        if response.status_code == 206:
            start, total = _content_range(response)
            if not partial.length:
                raise TransientError("the server sent a part of the file instead of all of it")
            changed = start != partial.length or total not in (None, self.total or total)
            changed |= bool(etag and partial.etag and etag != partial.etag)  # some servers ignore If-Range
            changed |= bool(modified and partial.last_modified and modified != partial.last_modified)
            if changed:
                return False
            if self.total is None:
                partial.total = total
            partial.resumed = True
        else:
            if self.size is not None and length not in (None, self.size):
                raise PermanentError(f"the server offers {length:,} bytes where {self.size:,} are expected")
            partial.restart(etag, modified, length)
        return True

    def _append(self, response: requests.Response) -> None:
        partial, total = self.partial, self.total
        free = shutil.disk_usage(partial.path.parent).free
        need = total - partial.length if total is not None else 0
        if need > free:
            raise CaptionerError(
                f"{partial.path.parent}: {free / 1e6:,.0f} MB are free but {partial.url} needs {need / 1e6:,.0f} MB "
                "more; "
                "free the disk or set runtime.download_cache to another folder"
            )
        unit, scale = ("MB", 10**6) if (total or 0) >= 10**7 else ("bytes", 1)
        with Progress(self.label, (total or 0) // scale, unit, partial.length // scale) as progress:
            for block in blocks(response, self.timeout):
                if total is not None and partial.length + len(block) > total:
                    partial.restart()
                    raise TransientError(f"more than the stated {total:,} bytes")
                before = partial.length // scale
                partial.append(block)
                progress.advance(partial.length // scale - before)
                self.check()
            if total is not None and partial.length < total:
                raise TransientError(f"the connection ended after {partial.length:,} of {total:,} bytes")

    def _validator(self) -> str | None:
        """The value of If-Range: a strong ETag, else the date; a weak ETag does not guarantee the same bytes."""
        if self.partial.etag and not self.partial.etag.startswith("W/"):
            return self.partial.etag
        return self.partial.last_modified

    def _resumable(self) -> bool:
        return self._validator() is not None or self.checksum_known


def _download(job: _Download, retries: int, backoff: float, remedy: str) -> None:
    """Repeat attempts until the file is complete. Raises CaptionerError."""
    partial, failures = job.partial, 0
    furthest = partial.length
    with open_session() as session:
        while True:
            job.check()
            try:
                return job.attempt(session)
            except PermanentError as error:
                raise CaptionerError(f"{partial.url}: {error}; {remedy}") from error
            except TransientError as error:
                if partial.length >= furthest + PROGRESS_BYTES:
                    failures, furthest = 0, partial.length
                failures += 1
                if failures >= retries:
                    total = f" of {job.total:,}" if job.total is not None else ""
                    raise CaptionerError(
                        f"{partial.url}: {error} (attempt {failures} of {retries}); {partial.length:,}{total} bytes "
                        "are kept "
                        f"and the next run resumes from there; or {remedy}"
                    ) from error
                delay = delay_before(failures + 1, backoff, error.retry_after)
                click.echo(f"{job.label}: {error}; attempt {failures + 1} of {retries} in {delay:.1f} s", err=True)
            pause(delay, job.check)


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """(first byte, total) of ``Content-Range: bytes 5-9/10`` or ``bytes */10``; None if not given."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    start = span.partition("-")[0]
    if unit.strip().lower() != "bytes":
        return None, None
    return (int(start) if start.isdecimal() else None), (int(total) if total.isdecimal() else None)
