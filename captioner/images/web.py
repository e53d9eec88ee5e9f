"""HTTP requests for downloads: streamed responses, and errors classified as transient (retry) or permanent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import requests

BLOCK = 256 * 1024  # bytes read at a time, at most
LONGEST_DELAY = 60.0  # seconds
_TRANSIENT = {408, 425, 429}  # the 4xx statuses that are worth a retry
_JITTER = random.Random()  # a generator of its own, so that downloads do not change seeded ones


class PermanentError(Exception):
    """A permanent error: the same request would fail again."""


class TransientError(Exception):
    """A transient error: a retry may succeed.

    Attributes:
        retry_after: seconds that the server asked to wait, else 0.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def open_session() -> requests.Session:
    """A keep-alive session for http and https only, so that a redirect cannot lead to a local file."""
    import requests

    session = requests.Session()
    session.max_redirects = 10
    # A compressed response has other lengths and byte positions than the file.
    session.headers.update({"User-Agent": "captioner", "Accept-Encoding": "identity"})
    return session


@contextmanager
def get(
    session: requests.Session, url: str, timeout: float, headers: dict[str, str] | None = None
) -> Iterator[requests.Response]:
    """The response to GET with its body unread; closed at the end of the ``with`` block.

    Args:
        timeout: seconds without a byte after which the server counts as stalled.
        headers: request headers in addition to the session's.

    Raises:
        PermanentError: an unsupported scheme, an invalid address or certificate, or a permanent 4xx status (404, 410,
            403 ...).
        TransientError: no connection, no byte for ``timeout`` seconds, or status 408, 425, 429 or 5xx.
    """
    import requests

    try:
        response = session.get(url, headers=headers, stream=True, timeout=timeout)
    except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema) as error:
        raise PermanentError("only http and https addresses are supported") from error
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects, UnicodeError) as error:
        raise PermanentError(str(error) or "not a valid address") from error
    except requests.RequestException as error:
        reason = _root_cause(error, timeout)
        raise (PermanentError if "CERTIFICATE_VERIFY_FAILED" in reason else TransientError)(reason) from error
    except ValueError as error:  # hosts that urllib3 cannot parse
        raise PermanentError(f"not a valid address ({error})") from error
    with response:
        status = response.status_code
        if status >= 500 or status in _TRANSIENT:
            raise TransientError(f"HTTP {status} {response.reason}", _seconds(response.headers.get("Retry-After")))
        if status >= 400 and status != 416:  # 416 answers a Range request and is left to the caller
            raise PermanentError(f"HTTP {status} {response.reason}")
        if status not in (200, 206, 416):
            raise PermanentError(f"HTTP {status} {response.reason} where a file was expected")
        yield response


def blocks(response: requests.Response, timeout: float) -> Iterator[bytes]:
    """The raw body in blocks of at most ``BLOCK`` bytes; raises TransientError.

    A body that ends early is no error here: the caller compares lengths.
    """
    import http.client

    import urllib3.exceptions

    while True:
        try:
            block = response.raw.read1(
                BLOCK, decode_content=False
            )  # returns what has arrived, so that slow downloads are saved too
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise TransientError(_root_cause(error, timeout)) from error
        if not block:
            return
        yield block


def body_length(response: requests.Response) -> int | None:
    """Content-Length in bytes, or None if the server does not give it."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and text.isascii() else None


def delay_before(attempt: int, backoff: float, retry_after: float = 0.0) -> float:
    """Seconds to wait before an attempt (the first is 1): ``backoff`` before attempt 2, then doubling, with jitter, at
    most a minute."""
    doubled = backoff * 2 ** min(attempt - 2, 30)
    return min(max(doubled * _JITTER.uniform(0.5, 1.0), retry_after), LONGEST_DELAY)


def pause(seconds: float, check: Callable[[], None]) -> None:
    """Sleep, calling ``check`` (which may raise) several times a second."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 0.2))
    check()


def _root_cause(error: BaseException, timeout: float) -> str:
    """The innermost cause as a short phrase; the libraries' own messages repeat the address and class names."""
    names, last = set(), error
    while True:
        names.add(type(last).__name__)
        nested = last.__cause__ or last.__context__ or getattr(last, "reason", None)
        if not isinstance(nested, BaseException):
            break
        last = nested
    if names & {"ReadTimeout", "ReadTimeoutError", "ConnectTimeout", "ConnectTimeoutError", "TimeoutError"}:
        return f"no byte for {timeout:g} s"
    if names & {"NameResolutionError", "gaierror"}:
        return "the host name cannot be resolved (is there a network?)"
    if "IncompleteRead" in names:
        return "the connection ended early"
    if isinstance(last, OSError) and last.strerror:
        return last.strerror
    return str(last) or type(last).__name__


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; 0 for its date form."""
    return float(text) if text and text.isascii() and text.isdecimal() and len(text) < 8 else 0.0
