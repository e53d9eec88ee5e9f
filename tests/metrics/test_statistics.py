"""Scores from the sums of images' statistics: the published ones, those of the programs themselves, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.metrics import MetricValues, Scorer, Scores, bleu, score
from captioner.metrics.meteor_statistics import COLUMNS as METEOR_COLUMNS
from captioner.metrics.statistics import Statistics, make_statistics
from tests.metrics.golden import STANDARD, golden


@pytest.fixture(scope="module")
def scored(packaged_scorer: Scorer) -> Scores:
    references, candidates, _ = golden()
    return packaged_scorer.score(references, candidates)


def test_summed_statistics_give_the_golden_values(scored: Scores) -> None:
    _, _, wanted = golden()
    found = scored.statistics.overall()
    assert list(found) == STANDARD
    assert found == pytest.approx(wanted, abs=0.0005)


def test_summed_statistics_give_the_programs_own_scores(scored: Scores) -> None:
    """pycocoevalcap's and METEOR's, to the last digits."""
    assert scored.statistics.overall() == pytest.approx(scored.overall, rel=1e-12)


def test_a_selection_scores_as_if_it_were_all(scored: Scores, packaged_scorer: Scorer) -> None:
    """Some images twice, others not at all: BLEU, METEOR and ROUGE-L as the programs have them for just those
    captions; CIDEr-D keeps the document frequencies of the whole set."""
    references, candidates, _ = golden()
    drawn = np.random.default_rng(3).integers(0, 126, 200)
    ids = list(candidates)
    again = packaged_scorer.score(
        {n: references[ids[row]] for n, row in enumerate(drawn)},
        {n: candidates[ids[row]] for n, row in enumerate(drawn)},
    )
    counts = np.bincount(drawn, minlength=126)
    found = {
        name: float(value) for name, value in scored.statistics.scores(counts @ scored.statistics.values, 200).items()
    }
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l"):
        assert found[name] == pytest.approx(again.overall[name], rel=1e-12)
    assert found["cider_d"] == pytest.approx(
        np.mean([scored.per_image[ids[row]]["cider_d"] for row in drawn]), rel=1e-12
    )


def test_each_image_alone_has_its_own_score(scored: Scores) -> None:
    found = scored.statistics.scores(scored.statistics.values, 1)
    assert scored.statistics.image_ids == tuple(map(str, scored.per_image))
    for name in STANDARD:
        assert found[name] == pytest.approx([each[name] for each in scored.per_image.values()], abs=1e-12)


def test_meteor_of_captions_word_for_word_foreign_and_empty(packaged_scorer: Scorer) -> None:
    """Whole references have no fragmentation, alone and in sums with others; nothing is divided by zero."""
    references = {
        1: ["a dog runs on the grass"],
        2: ["a cat sat on the mat"],
        3: ["two birds"],
        4: ["a dog runs"],
        5: ["x"],
    }
    candidates = {1: "a dog runs on the grass", 2: "the cats are sitting on a mat", 3: "", 4: "quantum zebra", 5: "x"}
    for keys in ((1,), (3,), (4,), (1, 5), (1, 2), (1, 2, 3, 4, 5)):
        scores = packaged_scorer.score({key: references[key] for key in keys}, {key: candidates[key] for key in keys})
        assert scores.statistics.overall()["meteor"] == pytest.approx(scores.overall["meteor"], abs=1e-14)


def _of_counts(counts) -> Statistics:
    values = {"bleu_1": MetricValues(0, [0], bleu.statistics([counts]))}
    return make_statistics([1], values | {name: MetricValues.mean([1.0]) for name in ("rouge_l", "cider_d")})


def test_bleu_from_counts_alone() -> None:
    """Counts of a published run: BLEU .579 .404 .279 .191."""
    counts = {"guess": [9893, 8893, 7893, 6893], "correct": [5732, 2510, 1043, 423], "testlen": 9893, "reflen": [9855]}
    found = _of_counts(counts).overall()
    assert [found[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([0.579, 0.404, 0.279, 0.191], abs=0.0005)


def test_of_two_references_as_near_the_shorter_counts() -> None:
    counts = {"guess": [4, 3, 2, 1], "correct": [4, 3, 2, 1], "testlen": 4, "reflen": [6, 2, 9, 6]}
    statistics = _of_counts(counts)
    assert statistics.values[0, statistics.columns.index("bleu_reference_length")] == 2


def test_without_java_meteors_columns_are_absent(no_java) -> None:
    statistics = score({1: ["a dog"], 2: ["a cat sits"]}, {1: "a dog", 2: "the cat"}).statistics
    assert not set(METEOR_COLUMNS) & set(statistics.columns) and "meteor" not in statistics.overall()


def test_what_is_written_reads_back_the_same(scored: Scores) -> None:
    statistics = scored.statistics
    text = statistics.to_json()
    again = Statistics.from_json(text, "statistics.json")
    assert (again.image_ids, again.columns) == (statistics.image_ids, statistics.columns) and again.to_json() == text
    assert np.array_equal(again.values, statistics.values)
    assert len(text) < 126 * 250


@pytest.mark.parametrize(
    "change",
    [
        ("bleu_guess_1", "words"),
        ("image_id", "image"),
        ('"1", "2"', '"1"'),
        ('"rouge_l": [1,', '"rouge_l": [NaN,'),
        ('"rouge_l": [1,', '"rouge_l": [1, 1,'),
        ('"rouge_l": [1,', '"rouge_l": ["one",'),
        ('{\n"image_id"', '[{\n"image_id"'),
    ],
)
def test_a_damaged_table_is_refused(no_java, change) -> None:
    text = score({1: ["a dog"], 2: ["a cat sits"]}, {1: "a dog", 2: "the cat"}).statistics.to_json()
    for damaged in (text.replace(*change), "", "[]", text.splitlines()[0]):
        with pytest.raises(CaptionerError, match="per.csv: no table of statistics.*run the evaluate stage again"):
            Statistics.from_json(damaged, "per.csv")
    assert not math.isnan(Statistics.from_json(text, "per.csv").overall()["cider_d"])


def test_the_fingerprint_is_that_of_images_and_references(no_java) -> None:
    references = {1: ["a dog", "the dog runs"], 2: ["a cat"]}
    first = score(references, {1: "a", 2: "b"}).signature["fingerprint"]
    assert score({2: ["a cat"], 1: ["the dog runs", "a dog"]}, {1: "x", 2: "y"}).signature["fingerprint"] == first
    for other in (
        {1: ["a dog", "the dog run"], 2: ["a cat"]},
        {1: ["a dog", "the dog runs"], 3: ["a cat"]},
        {1: ["a dog"], 2: ["the dog runs", "a cat"]},
    ):
        assert score(other, dict.fromkeys(other, "a")).signature["fingerprint"] != first
