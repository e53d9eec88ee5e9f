"""SPICE where its jars are there, absent elsewhere. The parser cannot be had here, so a program of ours answers as the
real one does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from captioner.comparison.bootstrap import resample
from captioner.comparison.comparison import compare
from captioner.comparison.experiments import Run
from captioner.errors import CaptionerError
from captioner.metrics import score
from captioner.metrics import spice as module
from captioner.metrics.java import Java, find_java
from captioner.metrics.scores import with_slow_metrics
from captioner.metrics.spice import spice
from captioner.metrics.statistics import Statistics

# What SPICE reads and writes, as pycocoevalcap 1.2's spice.py does: a list of image_id, test, refs; F1 under
# scores/All/f, no number where there is no tuple.
PROGRAM = """#!{python}
import json, sys
arguments = sys.argv[1:]
at = arguments.index("-jar")
assert arguments[at + 1].endswith("spice-1.0.jar") and arguments[at + 3] == "-out" and "-Xmx8g" in arguments, arguments
rows = json.load(open(arguments[at + 2]))
def f1(row):
    ours, theirs = set(row["test"].split()), {{word for text in row["refs"] for word in text.split()}}
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else None
scores = [{{"All": {{"f": f1(row), "pr": 1}}, "Object": {{"f": None}}}} for row in rows]
answer = [{{"image_id": row["image_id"], "scores": own}} for row, own in zip(rows, scores)]
json.dump(answer[::-1], open(arguments[at + 4], "w"))
"""
REFERENCES = {"a": ["A dog runs."], "b": ["a cat", "two cats"], "c": ["the"]}
CAPTIONS = {"a": "a dog", "b": "a horse", "c": ""}


def _program(folder: Path, text: str) -> Java:
    path = folder / "java"
    path.write_text(text)
    path.chmod(0o755)
    return Java(str(path), "1")


@pytest.fixture
def installed(tmp_path, monkeypatch) -> None:
    """SPICE with its parser."""
    java = _program(tmp_path, PROGRAM.format(python=sys.executable))
    monkeypatch.setattr(module, "has_parser", lambda: True)
    monkeypatch.setattr(module, "find_java", lambda: java)


def test_absent_where_its_jars_are_not_there() -> None:
    assert not module.has_parser()
    scores = score(REFERENCES, CAPTIONS, meteor=False)
    assert (
        with_slow_metrics(scores, REFERENCES, CAPTIONS) is scores
        and "spice" not in scores.overall
        and "spice" not in scores.signature
    )


def test_the_mean_of_the_captions_f1(installed) -> None:
    """Of words here: a: 2 of 2 and 3; b: 1 of 2 and of a, cat, two, cats; c: 0 of 0 and 1."""
    scores = with_slow_metrics(score(REFERENCES, CAPTIONS, meteor=False), REFERENCES, CAPTIONS)
    each = {"a": 4 / 5, "b": 2 / 6, "c": 0.0}
    assert {key: found["spice"] for key, found in scores.per_image.items()} == pytest.approx(each)
    assert scores.overall["spice"] == pytest.approx((4 / 5 + 2 / 6) / 3) and scores.signature["spice"] == "SPICE 1.0"
    assert list(scores.overall)[-2:] == ["cider_d", "spice"]


def test_its_statistics_are_kept_and_resampled(installed) -> None:
    statistics = with_slow_metrics(score(REFERENCES, CAPTIONS, meteor=False), REFERENCES, CAPTIONS).statistics
    back = Statistics.from_json(statistics.to_json(), "statistics.json")
    assert back.columns == statistics.columns and back.overall()["spice"] == pytest.approx((4 / 5 + 2 / 6) / 3)
    [drawn] = resample([back], 50)
    assert {round(3 * value, 6) for value in drawn["spice"]} <= {
        round(a * 0.8 + b / 3, 6) for a in range(4) for b in range(4 - a)
    }


def test_no_number_is_nought(tmp_path) -> None:
    java = _program(tmp_path, PROGRAM.format(python=sys.executable))
    assert spice(java, [("", [""]), ("a", ["a"])]) == [0.0, 1.0]


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "#!/bin/sh\necho Exception: javax.xml.bind >&2; exit 3",
            r"failed \(status 3\): Exception: javax.xml.bind.*Java 8",
        ),
        ("#!/bin/sh\nexit 0", "failed .*No such file"),
        (f"#!{sys.executable}\nimport sys; open(sys.argv[-2], 'w').write('[1]')", "failed"),
    ],
)
def test_what_it_says_when_it_fails_is_shown(tmp_path, text, said) -> None:
    with pytest.raises(CaptionerError, match=f"SPICE 1.0: {said}"):
        spice(_program(tmp_path, text), [("a dog", ["a dog"])])


def test_it_is_stopped_when_it_hangs(tmp_path) -> None:
    with pytest.raises(CaptionerError, match="SPICE 1.0: not done after 0 s for 1 captions"):
        spice(_program(tmp_path, "#!/bin/sh\nexec sleep 60"), [("a dog", ["a dog"])], time_limit=0.3)


def test_the_real_program_without_its_parser_fails_in_one_line() -> None:
    """It takes our command line and then misses the parser's classes."""
    java = find_java()
    if java is None:
        pytest.skip("no Java runs here")
    with pytest.raises(CaptionerError, match=r"SPICE 1.0: failed \(status 1\):.*edu[./]stanford[./]nlp"):
        spice(java, [("a dog", ["a dog"])])


def test_command_line(installed, tmp_path) -> None:
    from click.testing import CliRunner

    from captioner.cli import main

    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)]
    captions = [{"id": number, "image_id": number, "caption": "a dog runs"} for number in (1, 2)]
    (tmp_path / "references.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": number, "caption": "a dog"} for number in (1, 2)]))
    result = CliRunner().invoke(main, ["score", str(tmp_path / "references.json"), str(tmp_path / "results.json")])
    assert "SPICE    80.0" in result.output, result.output


def test_a_comparison_of_runs_with_and_without_it_leaves_it_out(installed) -> None:
    plain = score(REFERENCES, CAPTIONS, meteor=False)
    full = with_slow_metrics(plain, REFERENCES, CAPTIONS)

    def metrics(*each) -> tuple[str, ...]:
        return compare(
            [
                Run((str(index),), {}, {"code": str(index)}, 1, scores.signature, scores.statistics)
                for index, scores in enumerate(each)
            ],
            20,
        ).metrics

    assert metrics(full, full)[-1] == "spice"
    assert metrics(full, plain) == metrics(plain, full) == metrics(plain, plain) and "spice" not in metrics(full, plain)
