"""Download many small files at once; a failed one is reported and does not stop the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

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

if TYPE_CHECKING:
    import requests

# A slow server may send a byte now and then and never time out; one attempt takes at most this many timeouts.
_TIMEOUTS_PER_ATTEMPT = 20
# Photo hosts redirect requests for a deleted photo to a placeholder image.
_PLACEHOLDER = "photo_unavailable"


@dataclass(frozen=True)
class FetchFailure:
    """A file that could not be downloaded, and why."""

    reason: str


class _Stopped(Exception):
    """The consumer closed the generator."""


def fetch_many(
    urls: Sequence[str],
    *,
    connections: int,
    retries: int,
    timeout: float,
    max_bytes: int = 50_000_000,
    backoff: float = 1.0,
) -> Iterator[tuple[int, bytes | FetchFailure]]:
    """Download ``urls`` with ``connections`` threads, each with its own keep-alive session.

    At most ``connections`` files are in progress and as many finished ones wait for the consumer, so memory stays under
    ``2 * connections`` times the largest file. Closing the generator stops the threads.

    Args:
        retries: attempts for each file.
        timeout: seconds without a byte before an attempt fails.
        max_bytes: a larger file is a failure; it is never held in memory.
        backoff: seconds before the second attempt; doubles with every further attempt, with jitter.

    Yields:
        (index into ``urls``, the file's bytes or a FetchFailure), in order of completion; every index once.
    """
    if not urls:
        return
    todo = iter(range(len(urls)))
    take, stopped = threading.Lock(), threading.Event()
    finished: queue.Queue[tuple[int, bytes | FetchFailure | BaseException]] = queue.Queue(maxsize=connections)

    def check() -> None:
        if stopped.is_set():
            raise _Stopped

    def hand_over(index: int, result: bytes | FetchFailure | BaseException) -> None:
        while True:
            check()
            try:
                return finished.put((index, result), timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        index = -1
        try:
            with open_session() as session:
                while True:
                    check()
                    with take:
                        index = next(todo, -1)
                    if index < 0:
                        return
                    hand_over(index, _fetch_one(session, urls[index], retries, timeout, max_bytes, backoff, check))
        except _Stopped:
            return
        except BaseException as error:  # a bug: pass it to the consumer, which would otherwise wait for ever
            try:
                hand_over(index, error)
            except _Stopped:
                return

    threads = [
        threading.Thread(target=work, name=f"fetch-{number}", daemon=True)
        for number in range(min(connections, len(urls)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in range(len(urls)):
            index, result = finished.get()
            if isinstance(result, BaseException):
                raise result
            yield index, result
    finally:
        stopped.set()


def _fetch_one(
    session: requests.Session,
    url: str,
    retries: int,
    timeout: float,
    max_bytes: int,
    backoff: float,
    check: Callable[[], None],
) -> bytes | FetchFailure:
    for attempt in range(1, retries + 1):
        try:
            return _attempt(session, url, timeout, max_bytes, check)
        except PermanentError as error:
            return FetchFailure(str(error))
        except TransientError as error:
            if attempt == retries:
                return FetchFailure(f"{error} ({retries} attempts)")
            delay = delay_before(attempt + 1, backoff, error.retry_after)
        pause(delay, check)
    raise ValueError(f"retries must be at least 1, not {retries}")


def _attempt(session: requests.Session, url: str, timeout: float, max_bytes: int, check: Callable[[], None]) -> bytes:
    deadline = time.monotonic() + _TIMEOUTS_PER_ATTEMPT * timeout
    with get(session, url, timeout) as response:
        if response.status_code != 200:
            raise PermanentError(f"HTTP {response.status_code} where a whole file was expected")
        if _PLACEHOLDER in urlsplit(response.url).path:
            raise PermanentError("the photo was removed; its host sends a placeholder")
        length = body_length(response)
        if length is not None and length > max_bytes:
            raise PermanentError(f"{length:,} bytes, more than the {max_bytes:,} allowed")
        body = bytearray()
        for block in blocks(response, timeout):
            check()
            body += block
            if len(body) > max_bytes:
                raise PermanentError(f"more than the {max_bytes:,} bytes allowed")
            if time.monotonic() > deadline:
                raise TransientError(f"not finished after {_TIMEOUTS_PER_ATTEMPT * timeout:g} s")
        if length is not None and len(body) < length:
            raise TransientError(f"the connection ended after {len(body):,} of {length:,} bytes")
        return bytes(body)
