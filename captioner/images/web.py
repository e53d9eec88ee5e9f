"""HTTP as downloads need it: streamed answers, and faults sorted into those worth another attempt and those that are
final."""

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
_PASSING = {408, 425, 429}  # of the 4xx answers, those that another attempt may mend
_JITTER = random.Random()  # its own generator, so that downloads leave seeded ones alone


class Refused(Exception):
    """A final answer: the same request would fail in the same way again."""


class Hiccup(Exception):
    """A passing fault: another attempt may succeed. ``retry_after``: seconds that the server asked to wait, else 0."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def open_session() -> requests.Session:
    """A session with kept-alive connections; it speaks http and https only, so a redirect cannot lead to a file."""
    import requests

    session = requests.Session()
    session.max_redirects = 10
    # A compressed answer has neither the length nor the byte positions of the file itself.
    session.headers.update({"User-Agent": "captioner", "Accept-Encoding": "identity"})
    return session


@contextmanager
def get(
    session: requests.Session, url: str, timeout: float, headers: dict[str, str] | None = None
) -> Iterator[requests.Response]:
    """The answer to GET with its body still to be read; closed, body unread or not, at the end of the block.

    Args:
        timeout: seconds without a byte after which the server counts as stalled.
        headers: request headers beyond the session's.

    Raises:
        Refused: no such scheme or host name, a certificate that does not hold, or a 4xx status that will stay (404,
            410, 403 ...).
        Hiccup: no connection, no byte for ``timeout`` seconds, or status 408, 425, 429 or 5xx.
    """
    import requests

    try:
        response = session.get(url, headers=headers, stream=True, timeout=timeout)
    except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema) as error:
        raise Refused("only http and https addresses are followed") from error
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects, UnicodeError) as error:
        raise Refused(str(error) or "no valid address") from error
    except requests.RequestException as error:
        reason = _root_cause(error, timeout)
        raise (Refused if "CERTIFICATE_VERIFY_FAILED" in reason else Hiccup)(reason) from error
    except ValueError as error:  # hosts that urllib3 cannot parse
        raise Refused(f"no valid address ({error})") from error
    with response:
        status = response.status_code
        if status >= 500 or status in _PASSING:
            raise Hiccup(f"HTTP {status} {response.reason}", _seconds(response.headers.get("Retry-After")))
        if status >= 400 and status != 416:  # 416 answers a Range: its meaning is the caller's
            raise Refused(f"HTTP {status} {response.reason}")
        if status not in (200, 206, 416):
            raise Refused(f"HTTP {status} {response.reason} where a file was expected")
        yield response


def blocks(response: requests.Response, timeout: float) -> Iterator[bytes]:
    """The raw body in blocks of at most ``BLOCK`` bytes. It may end early: the caller compares lengths. Raises
    Hiccup."""
    import http.client

    import urllib3.exceptions

    while True:
        try:
            block = response.raw.read1(BLOCK, decode_content=False)  # what is there: a trickle reaches the disk too
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise Hiccup(_root_cause(error, timeout)) from error
        if not block:
            return
        yield block


def body_length(response: requests.Response) -> int | None:
    """Content-Length in bytes, or None where the server does not state one."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and text.isascii() else None


def delay_before(attempt: int, backoff: float, retry_after: float = 0.0) -> float:
    """Seconds before attempt number ``attempt`` (the first is 1): doubling from ``backoff`` at attempt 2, with jitter,
    at most a minute."""
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
    """The innermost reason in one short phrase; the libraries' own texts repeat the address and their class names."""
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
        return "the host's name is not known here (is there a network?)"
    if "IncompleteRead" in names:
        return "the connection ended early"
    if isinstance(last, OSError) and last.strerror:
        return last.strerror
    return str(last) or type(last).__name__


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; its date form counts as unstated."""
    return float(text) if text and text.isascii() and text.isdecimal() and len(text) < 8 else 0.0
