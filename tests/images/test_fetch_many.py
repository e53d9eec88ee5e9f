"""Many images at once: valid ones arrive, failures are reported, memory is bounded."""

from __future__ import annotations

import threading
import time

import pytest

from captioner.images.fetch import FetchFailure, fetch_many
from tests.http_server import Redirect, Reset, Stall, Status, Truncate, http_server  # noqa: F401

BODY = bytes(range(256)) * 40


def get(urls: list[str], **options: object) -> dict[int, bytes | FetchFailure]:
    options = {"connections": 4, "retries": 3, "timeout": 0.3, "backoff": 0.01, **options}
    found = {}
    for index, result in fetch_many(urls, **options):
        assert index not in found
        found[index] = result
    assert sorted(found) == list(range(len(urls)))
    return found


def test_sound_and_dead_ones_together(http_server):
    faults = {
        "/sound": {},
        "/again": {"faults": [Status(500), Reset()]},
        "/stalls-once": {"faults": [Stall()]},
        "/cut-once": {"faults": [Truncate()]},
        "/moved": {"always": Redirect("/sound")},
    }
    dead = {
        "/gone": ({"always": Status(410)}, "HTTP 410"),
        "/broken": ({"always": Status(500)}, "HTTP 500"),
        "/cut": ({"always": Truncate()}, "ended"),
        "/stalls": ({"always": Stall()}, "no byte for 0.3 s"),
        "/away": ({"always": Redirect("file:///etc/passwd")}, "only http and https"),
        "/large": ({}, "more than the"),
        "/large-unstated": ({"length": False}, "more than the"),
    }
    urls = [http_server.add(path, BODY, **options) for path, options in faults.items()]
    urls += [
        http_server.add(path, BODY * (11 if "large" in path else 1), **options) for path, (options, _) in dead.items()
    ]
    urls += [http_server.url("/never-added"), "http://127.0.0.1:9/x", "nonsense", ""]
    reasons = [reason for _, reason in dead.values()] + ["HTTP 404", "Connection refused", "http", "http"]
    found = get(urls, max_bytes=10 * len(BODY))
    for index in range(len(faults)):
        assert found[index] == BODY, urls[index]
    for index, reason in enumerate(reasons, len(faults)):
        assert isinstance(found[index], FetchFailure) and reason in found[index].reason, (urls[index], found[index])
        assert "\n" not in found[index].reason
    assert [request.status for request in http_server.requests_for("/gone")] == [410]
    assert len(http_server.requests_for("/broken")) == 3


def test_connections_are_kept_alive(http_server):
    urls = [http_server.add(f"/{number}", BODY) for number in range(60)]
    assert all(body == BODY for body in get(urls).values())
    assert len({request.connection for request in http_server.requests}) <= 4


def test_placeholder_of_a_removed_photo_is_no_photo(http_server):
    http_server.add("/en-us/photo_unavailable.png", BODY)
    found = get([http_server.add("/1.jpg", b"", always=Redirect("/en-us/photo_unavailable.png"))])
    assert "removed" in found[0].reason


def test_no_more_than_the_bound_is_fetched_ahead(http_server):
    urls = [http_server.add(f"/{number}", BODY) for number in range(40)]
    results = fetch_many(urls, connections=2, retries=1, timeout=0.3)
    next(results)
    time.sleep(0.3)
    assert len(http_server.requests) <= 1 + 2 + 2  # taken, waiting, in the threads' hands
    results.close()


def test_closing_stops_the_threads(http_server):
    urls = [http_server.add(f"/{number}", BODY) for number in range(40)]
    results = fetch_many(urls, connections=3, retries=1, timeout=0.3)
    next(results)
    results.close()
    end = time.monotonic() + 3
    while any(thread.name.startswith("fetch-") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert len(http_server.requests) < 40


def test_a_fault_of_the_program_reaches_the_consumer(http_server):
    with pytest.raises(ValueError):
        list(fetch_many([http_server.add("/a", BODY)], connections=1, retries=0, timeout=0.3))


def test_nothing_to_fetch():
    assert list(fetch_many([], connections=2, retries=1, timeout=0.3)) == []
