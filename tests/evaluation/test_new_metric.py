"""A metric that is added to the registry is in every file of an evaluation, with its title."""

from __future__ import annotations

import csv
import json

import pytest

from captioner.comparison import Run, compare, table
from captioner.evaluation import summary
from captioner.metrics import METRICS, Corpus, Metric, MetricValues
from captioner.metrics.statistics import Statistics
from captioner.report import read_page
from tests.evaluation import small


def characters(corpus: Corpus) -> MetricValues:
    return MetricValues.mean([len(caption) for caption in corpus.candidates])


def test_a_new_metric(no_java, paths, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(
        METRICS, "characters", Metric("characters", "characters of a caption", characters, percent=False)
    )
    results = small.run(paths, tmp_path / "results" / "evaluate")
    metrics = json.loads((results / "metrics.json").read_text())
    with open(results / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lengths = [len(row["caption"]) for row in rows]
    assert [float(row["characters"]) for row in rows] == lengths and len(set(lengths)) > 1
    assert metrics["characters"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-6)
    assert metrics["val_characters"] > 0

    statistics = Statistics.from_json((results / "statistics.json").read_text(), "statistics.json")
    assert statistics.overall()["characters"] == pytest.approx(metrics["characters"], abs=1e-6)
    with open(results / "plots/beam_sweep.csv", newline="") as file:
        assert {"characters", "val_characters"} <= set(next(csv.DictReader(file)))
    assert f"characters of a caption  {metrics['characters']:8.3f}" in summary(results, paths["captions"], small.REPORT)
    run = Run(("first",), {}, {}, 1, json.loads((results / "signature.json").read_text()), statistics)
    comparison = compare([run], 20)
    assert "characters of a caption" in table.as_text(comparison, [])
    assert comparison.settings[0].scores["characters"].value == pytest.approx(metrics["characters"], abs=1e-6)

    page = (results / "report.html").read_text()
    assert '"characters":"characters of a caption"' in page
    [experiment] = read_page(page, "page")["experiments"]
    assert experiment["scores"]["characters"]["value"] == metrics["characters"]
    assert experiment["scores"]["characters"]["low"] is not None


def test_results_without_it_can_still_be_read(no_java, paths, tmp_path, monkeypatch) -> None:
    results = small.run(paths, tmp_path / "results")
    monkeypatch.setitem(
        METRICS, "characters", Metric("characters", "characters of a caption", characters, percent=False)
    )
    statistics = Statistics.from_json((results / "statistics.json").read_text(), "statistics.json")
    assert "characters" not in statistics.overall() and "bleu_4" in statistics.overall()
