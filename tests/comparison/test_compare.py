"""``captioner compare`` on a project under a real git and DVC, its stages imagined systems."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from click.testing import CliRunner, Result

from captioner.cli import main
from tests.comparison import making
from tests.metrics.golden import STANDARD
from tests.pipeline.workspace import Workspace

ODD = "=cmd|x_y_`z`"  # git and DVC allow it for a name


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Workspace:
    """main (gru, seed 1), then experiments: seed 2 of it, an lstm, one with another split, and last main's settings
    again."""
    workspace = making.project(tmp_path_factory.mktemp("compare") / "repository")
    for name, *options in (
        ("second", "seed=2"),
        (ODD, "decoder=lstm"),
        ("val", "evaluate.split=val"),
        ("again", "seed=1"),
    ):
        workspace.dvc("exp", "run", "-q", "-n", name, *(part for option in options for part in ("-S", option)))
        workspace.run("git", "checkout", "-q", "params.yaml", "dvc.lock", "results")
    workspace.dvc("checkout", "-q")
    return workspace


@pytest.fixture
def compare(project, monkeypatch):
    monkeypatch.chdir(project.folder)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["compare", *arguments])

    return run


def as_json(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_all_when_none_is_named(compare, project) -> None:
    found = as_json(compare("--json"))
    gru, lstm = sorted(found["settings"], key=lambda setting: setting["decoder"])
    assert (gru["encoder"], gru["decoder"], gru["attention"], lstm["decoder"]) == (
        "squeezenet1_1",
        "gru",
        "soft",
        "lstm",
    )
    by_seed = {run["seed"]: set(run["names"]) for run in gru["experiments"]}
    assert by_seed == {1: {"workspace", "main"} | ({"again"} & by_seed[1]), 2: {"second"}}
    assert [run["names"] for run in lstm["experiments"]] == [[ODD]]
    [left_out] = found["left_out"]
    assert (
        left_out["name"] == "val"
        and "scores of the split val, not test" in left_out["reason"]
        and "workspace" in left_out["reason"]
    )
    assert found["resamples"] == 1000 and found["signature"]["images"] == 200


def test_scores_are_those_of_the_captions_and_seeds_become_mean_and_spread(compare) -> None:
    one, two, lstm = (making.system(200, *of).overall() for of in ((0.7, 1), (0.7, 2), (0.5, 1)))
    gru, other = as_json(compare("--json", "main", "second", ODD))["settings"]
    for metric in STANDARD:
        score = gru["scores"][metric]
        assert score["value"] == pytest.approx(50 * (one[metric] + two[metric]), abs=1e-4)
        assert score["spread"] == pytest.approx(
            100 * abs(one[metric] - two[metric]) / 2**0.5, abs=2e-4
        )  # of a sample of two
        assert score["low"] < score["value"] < score["high"]
        assert (
            other["scores"][metric]["value"] == pytest.approx(100 * lstm[metric], abs=1e-4)
            and other["scores"][metric]["spread"] is None
        )


def test_different_systems_differ_and_the_same_do_not(compare, project) -> None:
    [pair] = as_json(compare("--json", "main", ODD))["pairs"]
    assert (pair["first"], pair["second"]) == (0, 1)
    for metric in STANDARD:
        found = pair["differences"][metric]
        assert found["value"] < 0 and found["low"] < found["value"] < found["high"] < 0 and found["p"] < 0.01
    assert as_json(compare("--json", "main", "HEAD", "workspace"))["pairs"] == []  # one and the same run


def test_other_code_with_the_same_results_is_a_setting_of_its_own_with_p_of_one(compare, project) -> None:
    (project.folder / "code.txt").write_text("two\n")
    try:
        project.dvc("exp", "run", "-q", "-n", "code")
        project.run("git", "checkout", "-q", ".")
        found = as_json(compare("--json", "main", "code"))
    finally:
        project.run("git", "checkout", "-q", ".")
        project.dvc("exp", "remove", "-q", "code")
    assert [set(setting["other_parameters"]) for setting in found["settings"]] == [{"code.txt"}, {"code.txt"}]
    [pair] = found["pairs"]
    assert all(difference["p"] == 1 and difference["value"] == 0 for difference in pair["differences"].values())


def test_text(compare) -> None:
    result = compare("main", "second", ODD, "val")
    assert result.exit_code == 0 and "Traceback" not in result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["experiment", "encoder", "decoder", "attention", "seeds"]
    assert lines[1].split() == ["1", "main,", "second", "squeezenet1_1", "gru", "soft", "1,", "2"]
    assert (
        "BLEU-4" in result.output
        and re.search(r"^1  \d\d\.\d ", result.output, re.M)
        and re.search(r"^2 - 1  -\d\d\.\d\d", result.output, re.M)
    )
    assert re.search(r"\d\d\.\d-\d\d\.\d", result.output) and "±" in result.output and "p 0.001" in result.output
    assert (
        "not compared: val: scores of the split val, not test" in result.output
        and "200 images of the split test" in result.output
    )
    assert max(map(len, lines[:-2])) < 120


def test_csv(compare) -> None:
    result = compare("--csv", "main", ODD, "val")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 3 * len(STANDARD) and {row["metric"] for row in rows} == set(STANDARD)
    assert rows[7]["experiment"] == "'" + ODD and rows[14]["experiment"] == "'" + ODD and rows[14]["versus"] == "main"
    assert all(not cell.startswith(("=", "@", "+")) for row in rows for cell in row.values())
    assert (
        rows[7]["decoder"] == "lstm"
        and float(rows[7]["low"]) < float(rows[7]["score"]) < float(rows[7]["high"])
        and rows[7]["p"] == ""
    )
    assert float(rows[14]["score"]) < 0 and float(rows[14]["p"]) < 0.01  # a negative number stays one
    assert "not compared: val" in result.stderr


def test_markdown(compare) -> None:
    result = compare("--markdown", "main", ODD)
    tables = [block.splitlines() for block in result.output.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(columns) == 1 and set(lines[1]) == {"|", "-"}
    assert r"=cmd\|x_y\_\`z\`" in result.output and "squeezenet1_1" in result.output


def test_an_unknown_name_is_one_line_with_near_ones(compare) -> None:
    result = compare("main", "secnd")
    assert (
        result.exit_code == 1 and result.output.startswith("Error: 'secnd'") and "near ones are second" in result.output
    )
    assert len(result.output.splitlines()) == 1
    assert "near ones are" in compare("--", "--output=x").output


def test_revisions_by_their_hash(compare, project) -> None:
    commit = project.run("git", "rev-parse", "main").strip()
    experiment = project.run("git", "for-each-ref", "--format=%(objectname:short)", f"refs/exps/*/*/{ODD}").split()[0]
    first, second = as_json(compare("--json", commit[:8], experiment))["settings"]
    assert (first["decoder"], second["decoder"]) == ("gru", "lstm")


def test_results_that_are_not_there(compare, project) -> None:
    """A file that DVC did not write, a commit of an older version, and one without results."""
    project.run("git", "checkout", "-q", "-b", "old")
    lock = project.folder / "dvc.lock"
    lock.write_text(lock.read_text().replace("statistics.json", "statistics.csv"))
    project.run("git", "commit", "-qam", "as an older version wrote it")
    project.run("git", "rm", "-q", "-r", "--cached", "dvc.lock", "results")
    project.run("git", "commit", "-qm", "no results")
    project.run("git", "tag", "none")
    project.run("git", "reset", "-q", "--soft", "HEAD~")
    project.run("git", "checkout", "-q", "-f", "main")
    signature = project.folder / "results/evaluate/signature.json"
    text = signature.read_text()
    signature.write_text(text + " ")
    try:
        found = as_json(compare("--json", "main", "workspace", "old", "none"))
        assert [row["name"] for row in found["left_out"]] == ["workspace", "old", "none"] and len(
            found["settings"]
        ) == 1
        edited, old, none = (row["reason"] for row in found["left_out"])
        assert "signature.json is not the one that its dvc.lock names" in edited
        assert "names no results/evaluate/statistics.json: an older version made it" in old
        assert none == "it has no dvc.lock; no run is committed"
        result = compare("workspace")
        assert result.exit_code == 1 and "no experiment to show (workspace: results/evaluate/signature" in result.output
    finally:
        signature.write_text(text)


def test_one_form_at_a_time(compare) -> None:
    assert compare("--csv", "--json").exit_code == 2


def test_outside_a_repository(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    result = CliRunner().invoke(main, ["compare"])
    assert result.exit_code == 1 and "in no git repository" in result.output
