"""The paired bootstrap: by hand on tiny tables, for a system and itself, and its rate of false alarms by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from captioner.comparison.bootstrap import interval, p_value, resample
from captioner.metrics.statistics import Statistics
from tests.comparison.making import system
from tests.metrics.golden import STANDARD


def table(cider: list[float]) -> Statistics:
    """Captions of one word, right where CIDEr-D is above zero."""
    bleu = [[1, 0, 0, 0, value > 0, 0, 0, 0, 1, 1] for value in cider]
    names = (
        *(f"bleu_guess_{n}" for n in range(1, 5)),
        *(f"bleu_correct_{n}" for n in range(1, 5)),
        "bleu_length",
        "bleu_reference_length",
    )
    values = np.array([[*row, 1.0, value] for row, value in zip(bleu, cider, strict=True)], dtype=float)
    return Statistics(tuple(map(str, range(len(cider)))), (*names, "rouge_l", "cider_d"), values)


def test_resamples_of_three_images_are_those_of_all_27() -> None:
    """Three images have 27 equally likely samples: the means 0, 1, ..., 9 over 3 of the scores 0, 1, 3, in their
    shares."""
    scores = [0.0, 1.0, 3.0]
    exact = [sum(drawn) / 3 for drawn in itertools.product(scores, repeat=3)]
    [found] = resample([table(scores)], 20_000)
    for value in set(exact):
        share = exact.count(value) / 27
        assert np.isclose(found["cider_d"], value).mean() == pytest.approx(
            share, abs=5 * math.sqrt(share * (1 - share) / 20_000)
        )
    assert set(np.round(found["cider_d"], 9)) == {round(value, 9) for value in exact}
    # BLEU-1 is the share of right words in the same draws
    right = [sum(value > 0 for value in drawn) / 3 for drawn in itertools.product(scores, repeat=3)]
    assert found["bleu_1"].mean() == pytest.approx(np.mean(right), abs=0.01) and set(np.round(found["bleu_1"], 6)) == {
        0,
        0.333333,
        0.666667,
        1,
    }


def test_every_table_has_the_same_draws() -> None:
    """Image by image one more: resample by resample one more, whatever was drawn."""
    first, second = resample([table([0.0, 1.0, 3.0, 2.0]), table([1.0, 2.0, 4.0, 3.0])], 500)
    assert second["cider_d"] - first["cider_d"] == pytest.approx(np.ones(500))
    again, _ = resample([table([0.0, 1.0, 3.0, 2.0]), table([9.0, 9.0, 9.0, 9.0])], 500)
    assert np.array_equal(first["cider_d"], again["cider_d"])


def test_blocks_of_resamples_are_different_draws(monkeypatch) -> None:
    whole = resample([table([0.0, 1.0, 3.0, 2.0])], 64)[0]["cider_d"]
    monkeypatch.setattr("captioner.comparison.bootstrap._DRAWN_AT_ONCE", 40)
    assert np.array_equal(resample([table([0.0, 1.0, 3.0, 2.0])], 64)[0]["cider_d"], whole)


def test_p_value_by_hand() -> None:
    """Observed 0.5; the shifted draws are 0, 0.5, -0.5, 0.4, -1: three of five as far from zero as 0.5; the observed
    one counts as well."""
    assert p_value(0.5, np.array([0.5, 1.0, 0.0, 0.9, -0.5])) == pytest.approx((1 + 3) / (1 + 5))
    assert p_value(-0.5, -np.array([0.5, 1.0, 0.0, 0.9, -0.5])) == pytest.approx(4 / 6)
    assert p_value(0.3, np.full(999, 0.3)) == pytest.approx(1 / 1000)  # never 0
    assert p_value(0.1 + 0.2 - 0.3, np.zeros(10)) == 1  # rounding is no difference


def test_interval_holds_95_percent_of_the_draws() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))


def test_a_system_and_itself() -> None:
    one = system(300, 0.6, seed=1)
    first, second = resample([one, Statistics(one.image_ids, one.columns, one.values.copy())])
    for metric, value in one.overall().items():
        assert p_value(value - value, second[metric] - first[metric]) == 1


def test_clearly_different_systems() -> None:
    hardness = np.random.default_rng(0).normal(0, 0.15, 500)
    one, two = system(500, 0.6, 1, hardness), system(500, 0.68, 2, hardness)
    first, second = resample([one, two])
    assert list(first) == STANDARD
    for metric in STANDARD:
        assert p_value(two.overall()[metric] - one.overall()[metric], second[metric] - first[metric]) < 0.01, metric


def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    """Two samples of one system on the same images differ 'with p < 0.05' in 5 % of the cases, for every metric: a
    binomial number of alarms, here at most three of its standard deviations above and, for a test that never alarms is
    none, at least half as many."""
    pairs, alarms = 600, dict.fromkeys(STANDARD, 0)
    for pair in range(pairs):
        hardness = np.random.default_rng((7, pair)).normal(0, 0.15, 150)
        one, two = (system(150, 0.6, 2 * pair + which, hardness) for which in (0, 1))
        first, second = resample([one, two], 300)
        for metric in STANDARD:
            alarms[metric] += (
                p_value(two.overall()[metric] - one.overall()[metric], second[metric] - first[metric]) <= 0.05
            )
    most = pairs * 0.05 + 3 * math.sqrt(pairs * 0.05 * 0.95)
    assert all(pairs * 0.025 <= count <= most for count in alarms.values()), alarms


def test_intervals_hold_the_true_score_as_often_as_they_should() -> None:
    """The score on 40,000 images stands for the true one; 95 % of samples' intervals hold it, within three standard
    deviations."""
    truth, trials = system(40_000, 0.6, seed=12345).overall(), 300
    held = dict.fromkeys(STANDARD, 0)
    for trial in range(trials):
        [drawn] = resample([system(150, 0.6, seed=trial)], 300)
        for metric in STANDARD:
            low, high = interval(drawn[metric])
            held[metric] += low <= truth[metric] <= high
    least = (
        trials * 0.95 - 3 * math.sqrt(trials * 0.95 * 0.05) - trials * 0.01
    )  # a hundredth for the ends of intervals from 300 draws
    assert all(count >= least for count in held.values()), held
