"""One large file over a bad network: every fault of the local server, and a kill."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from captioner.errors import CaptionerError, Interrupted
from captioner.images import fetch as fetch_module
from captioner.images.fetch import fetch
from captioner.interrupts import StopSignal
from tests.http_server import FaultyServer, Redirect, Reset, Slow, Stall, Status, Truncate, http_server  # noqa: F401

DATA = random.Random(7).randbytes(300_000)
HALF = len(DATA) // 2
MD5, SHA256 = hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()


def get(url: str, target: Path, **options: object) -> Path:
    return fetch(url, target, **{"retries": 4, "timeout": 0.3, "backoff": 0.01, **options})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "data.zip"


def only_target_left(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == [target.name] and target.read_bytes() == DATA


def statuses(server: FaultyServer, path: str = "/f") -> list[int]:
    return [request.status for request in server.requests_for(path)]


def test_whole_file_with_size_and_checksums(http_server, target):
    url = http_server.add("/f", DATA)
    assert get(url, target, size=len(DATA), md5=MD5, sha256=SHA256.upper()) == target
    assert only_target_left(target)


@pytest.mark.parametrize("known", [{"size": len(DATA)}, {"md5": MD5}, {"sha256": SHA256}, {}])
def test_file_in_place_needs_no_network(target, known):
    target.parent.mkdir()
    target.write_bytes(DATA)
    assert get("http://127.0.0.1:9/none", target, **known) == target


@pytest.mark.parametrize("known", [{"size": len(DATA)}, {"sha256": SHA256}])
def test_wrong_file_in_place_is_replaced(http_server, target, known, capsys):
    target.parent.mkdir()
    target.write_bytes(b"an old one")
    get(http_server.add("/f", DATA), target, **known)
    assert only_target_left(target)
    assert "instead of" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [Reset(0.5), Stall(0.5), Truncate(0.5)])
@pytest.mark.parametrize(
    "validators", [{"etag": '"a"'}, {"etag": None, "last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"}]
)
def test_broken_connection_is_resumed(http_server, target, fault, validators):
    url = http_server.add("/f", DATA, faults=[fault], **validators)
    get(url, target, size=len(DATA))
    assert only_target_left(target)
    assert statuses(http_server) == [200, 206]
    assert http_server.bytes_served("/f") == len(DATA)  # no byte came twice
    second = http_server.requests_for("/f")[1].headers
    assert second["Range"] == f"bytes={HALF}-" and second["If-Range"] == (
        validators["etag"] or validators["last_modified"]
    )


def test_no_validator_and_no_checksum_starts_afresh(http_server, target):
    get(http_server.add("/f", DATA, faults=[Reset()], etag=None), target, size=len(DATA))
    assert only_target_left(target) and statuses(http_server) == [200, 200]


def test_weak_etag_is_no_promise(http_server, target):
    get(http_server.add("/f", DATA, faults=[Reset()], etag='W/"a"'), target)
    assert only_target_left(target) and statuses(http_server) == [200, 200]


def test_checksum_stands_in_for_a_validator(http_server, target):
    get(http_server.add("/f", DATA, faults=[Reset()], etag=None), target, md5=MD5)
    assert only_target_left(target) and statuses(http_server) == [200, 206]


@pytest.mark.parametrize("ranges, expected", [("ignore", [200, 200]), ("refuse", [200, 416, 200])])
def test_server_without_ranges(http_server, target, ranges, expected):
    get(http_server.add("/f", DATA, faults=[Reset()], ranges=ranges), target, size=len(DATA))
    assert only_target_left(target) and statuses(http_server) == expected


@pytest.mark.parametrize("ranges, expected", [("serve", [200]), ("careless", [206, 200])])
def test_file_that_changed_in_between(http_server, target, ranges, expected):
    """A faulty server ignores If-Range and sends the rest of the new file."""
    other = bytes(reversed(DATA))
    url = http_server.add("/f", other, always=Truncate(0.5), etag='"old"')
    with pytest.raises(CaptionerError):
        get(url, target, retries=1)
    assert target.with_name("data.zip.partial").stat().st_size == HALF
    http_server.requests.clear()
    http_server.add("/f", DATA, etag='"new"', ranges=ranges)
    get(url, target)
    assert only_target_left(target) and statuses(http_server) == expected


def test_changed_without_notice_is_found_by_the_checksum(http_server, target, capsys):
    url = http_server.add("/f", bytes(len(DATA)), always=Truncate(0.5), etag='"same"')
    with pytest.raises(CaptionerError):
        get(url, target, retries=1, sha256=SHA256)
    http_server.add("/f", DATA, etag='"same"')
    get(url, target, sha256=SHA256)
    assert only_target_left(target)
    assert "starting afresh" in capsys.readouterr().err


def test_other_address_starts_afresh(http_server, target):
    with pytest.raises(CaptionerError):
        get(http_server.add("/old", bytes(len(DATA)), always=Truncate(0.5)), target, retries=1)
    get(http_server.add("/f", DATA), target)
    assert only_target_left(target) and statuses(http_server) == [200]


def test_whole_partial_is_only_checked(http_server, target):
    """Killed between the last byte and the rename."""
    url = http_server.add("/f", DATA, length=False)
    target.parent.mkdir()
    target.with_name("data.zip.partial").write_bytes(DATA)
    state = f'{{"url": "{url}", "etag": "\\"1\\"", "last_modified": null, "total": null, "pid": 1}}'
    target.with_name("data.zip.partial.json").write_text(state)
    get(url, target)  # its length unknown: 416 with the length tells
    assert only_target_left(target) and statuses(http_server) == [416] and http_server.bytes_served("/f") == 0


@pytest.mark.parametrize("state", ["", "{", "[]", '{"url": 3}', "null"])
def test_broken_state_starts_afresh(http_server, target, state):
    url = http_server.add("/f", DATA)
    target.parent.mkdir()
    target.with_name("data.zip.partial").write_bytes(DATA[:1000])
    target.with_name("data.zip.partial.json").write_text(state)
    get(url, target)
    assert only_target_left(target)


def test_length_unknown(http_server, target):
    get(http_server.add("/f", DATA, length=False), target, sha256=SHA256)
    assert only_target_left(target)


def test_passing_statuses_are_retried(http_server, target):
    get(http_server.add("/f", DATA, faults=[Status(500), Status(503, {"Retry-After": "0"}), Status(429)]), target)
    assert only_target_left(target) and statuses(http_server) == [500, 503, 429, 200]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_final_statuses_fail_at_once(http_server, target, code):
    url = http_server.add("/f", DATA, always=Status(code))
    with pytest.raises(CaptionerError) as caught:
        get(url, target)
    assert (
        url in caught.value.message
        and f"HTTP {code}" in caught.value.message
        and "download.root" in caught.value.message
    )
    assert len(http_server.requests) == 1


def test_attempts_run_out(http_server, target):
    url = http_server.add("/f", DATA, always=Status(500))
    with pytest.raises(CaptionerError, match=r"HTTP 500.*attempt 3 of 3"):
        get(url, target, retries=3)
    assert len(http_server.requests) == 3


def test_attempts_run_out_without_ranges_although_bytes_come(http_server, target):
    with pytest.raises(CaptionerError, match="150,000 of 300,000 bytes are kept"):
        get(http_server.add("/f", DATA, always=Reset(0.5), ranges="ignore"), target)
    assert len(http_server.requests) == 4


def test_progress_starts_the_count_anew(http_server, target, monkeypatch):
    """Ten broken connections, three consecutive failures allowed: every connection brings new bytes."""
    monkeypatch.setattr(fetch_module, "PROGRESS_BYTES", 100)
    get(http_server.add("/f", DATA, faults=[Reset(0.3)] * 10), target, retries=3)
    assert only_target_left(target) and http_server.bytes_served("/f") == len(DATA)


def test_wrong_checksum_is_deleted_and_named(http_server, target):
    url = http_server.add("/f", DATA[:-1] + b"?")
    with pytest.raises(CaptionerError) as caught:
        get(url, target, md5=MD5)
    message = caught.value.message
    assert url in message and MD5 in message and hashlib.md5(DATA[:-1] + b"?").hexdigest() in message
    assert list(target.parent.iterdir()) == []
    assert len(http_server.requests) == 1


def test_wrong_size_is_refused_before_a_byte_is_written(http_server, target):
    with pytest.raises(CaptionerError, match="300,000 bytes where 400,000 are expected"):
        get(http_server.add("/f", DATA), target, size=400_000)


def test_wrong_size_of_unknown_length(http_server, target):
    with pytest.raises(CaptionerError):
        get(http_server.add("/f", DATA, length=False), target, size=200_000)
    assert not target.exists()


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/a", "file:///etc/hostname", "no address", "http://", "http://[::1/x", "http://a..b/"]
)
def test_addresses_that_are_none(target, url):
    with pytest.raises(CaptionerError):
        get(url, target, retries=1)


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_redirect_to_other_schemes_is_refused(http_server, target, location):
    with pytest.raises(CaptionerError, match="only http and https"):
        get(http_server.add("/f", DATA, always=Redirect(location)), target)
    assert not target.exists()


def test_redirects_are_followed_and_loops_end(http_server, target):
    http_server.add("/g", DATA)
    get(http_server.add("/f", b"", always=Redirect("/g")), target)
    assert only_target_left(target)
    with pytest.raises(CaptionerError):
        get(http_server.add("/loop", b"", always=Redirect("/loop")), target.with_name("other"))


def test_nobody_listens(target):
    with pytest.raises(CaptionerError, match="Connection refused"):
        get("http://127.0.0.1:9/x", target, retries=2)


def test_disk_too_small(http_server, target, monkeypatch):
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100_000})())
    with pytest.raises(CaptionerError, match="download_cache"):
        get(http_server.add("/f", DATA), target)
    assert target.with_name("data.zip.partial").stat().st_size == 0


def test_disk_fills_up(http_server, target, monkeypatch):
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    url = http_server.add("/f", DATA)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(CaptionerError, match="No space left"):
            get(url, target)
    get(url, target)
    assert only_target_left(target)


def test_folder_cannot_be_made(http_server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptionerError, match="cannot be written"):
        get(http_server.add("/f", DATA), tmp_path / "file" / "data.zip")


CHILD = """
import sys
from pathlib import Path
from captioner.images.fetch import fetch
fetch(sys.argv[1], Path(sys.argv[2]), retries=2, timeout=5, sha256=sys.argv[3])
"""


def start_child(url: str, target: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(target), SHA256], stderr=subprocess.PIPE, text=True
    )
    partial = target.with_name(target.name + ".partial")
    end = time.monotonic() + 20
    while not (partial.exists() and partial.stat().st_size > 60_000):
        assert time.monotonic() < end and process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    return process


def test_killed_and_resumed(http_server, target):
    url = http_server.add("/f", DATA, faults=[Slow(300_000)])
    process = start_child(url, target)
    process.kill()
    process.wait()
    process.stderr.close()
    kept = target.with_name("data.zip.partial").stat().st_size
    assert 60_000 < kept < len(DATA)
    get(url, target, sha256=SHA256)
    first, second = http_server.requests_for("/f")
    assert only_target_left(target)
    assert second.headers["Range"] == f"bytes={kept}-" and second.sent == len(DATA) - kept


def test_second_process_is_refused_by_pid(http_server, target):
    url = http_server.add("/f", DATA, faults=[Slow(300_000)])
    process = start_child(url, target)
    with pytest.raises(CaptionerError, match=f"process {process.pid} is downloading"):
        get(url, target)
    assert process.wait(20) == 0
    process.stderr.close()
    assert only_target_left(target)


def test_stop_signal_keeps_the_bytes(http_server, target):
    url = http_server.add("/f", DATA, faults=[Slow(300_000)])
    with StopSignal("download") as stop:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted):
            get(url, target, stop=stop)
    kept = target.with_name("data.zip.partial").stat().st_size
    assert 0 < kept < len(DATA)
    get(url, target)
    assert only_target_left(target) and http_server.requests_for("/f")[1].sent == len(DATA) - kept
