"""SPICE in an evaluation: of the headline's captions alone, for it takes minutes."""

from __future__ import annotations

import csv
import json

import pytest

from captioner.evaluation import summary
from captioner.metrics import spice
from captioner.report import read_page
from tests.evaluation import small


def test_it_is_in_every_file_but_the_beam_sweep(tmp_path, monkeypatch) -> None:
    asked = []

    def of_each(java, captions):
        asked.append(len(captions))
        return [number / 10 for number in range(len(captions))]

    monkeypatch.setattr("captioner.metrics.scores.find_java", lambda: None)
    monkeypatch.setattr(spice, "find_java", lambda: "java")
    monkeypatch.setattr(spice, "has_parser", lambda: True)
    monkeypatch.setattr(spice, "spice", of_each)
    paths = small.make_run(tmp_path / "run")
    results = small.run(paths, tmp_path / "results" / "evaluate", beam_sizes=[1, 3])
    metrics = json.loads((results / "metrics.json").read_text())
    assert (
        asked == [12]
        and metrics["spice"] == pytest.approx(sum(range(12)) / 1.2, abs=1e-4)
        and "val_spice" not in metrics
    )
    assert json.loads((results / "signature.json").read_text())["spice"] == "SPICE 1.0"
    with open(results / "per_image.csv", newline="") as file:
        assert [float(row["spice"]) for row in csv.DictReader(file)] == [10 * number for number in range(12)]
    assert "spice" not in (results / "plots/beam_sweep.csv").read_text().splitlines()[0]
    assert f"SPICE           {metrics['spice']:8.1f}" in summary(results, paths["captions"], small.REPORT)
    [experiment] = read_page((results / "report.html").read_text(), "page")["experiments"]
    assert (
        experiment["scores"]["spice"]["value"] == metrics["spice"] and "spice" not in experiment["beam_sweep"]["values"]
    )
    assert {caption["scores"]["spice"] for caption in experiment["captions"]} == {10 * number for number in range(12)}
