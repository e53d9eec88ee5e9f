"""Sampling: draws from given random numbers by hand, frequencies, and independence of an image's samples."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from captioner.errors import CaptionerError
from captioner.search import BeamStrategy, Constraints, SamplingStrategy, search
from captioner.search import sampling as module
from captioner.vocabulary.vocabulary import END, PAD, START, UNK
from tests.search.tables import A, B, C, TableDecoder, images, probs, random_table


def sample(table, image_ids, samples, keep=None, max_length=12, constraints=None, **options):
    decoder = TableDecoder(table)
    memory = decoder.encode(images(*image_ids))
    strategy = SamplingStrategy(samples, image_ids, max_length, **options)
    return search(
        decoder,
        memory,
        len(image_ids),
        strategy,
        constraints or Constraints(max_length, 1),
        keep=samples if keep is None else keep,
    )


def one_word(_: int, prefix: tuple[int, ...]) -> list[float]:
    """Ids in order: END 0 (an empty caption is banned), a .5, b .3, c .2."""
    return probs(a=0.5, b=0.3, c=0.2) if not prefix else probs(end=1.0)


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, {0.0: A, 0.49: A, 0.51: B, 0.79: B, 0.81: C, 0.99: C}),
        # squares: .25, .09, .04 of .38: a to .658, b to .895
        ({"temperature": 0.5}, {0.65: A, 0.67: B, 0.89: B, 0.90: C}),
        # square roots: .7071, .5477, .4472 of 1.7020: a to .4155, b to .7373
        ({"temperature": 2.0}, {0.41: A, 0.42: B, 0.73: B, 0.74: C}),
        ({"top_k": 2}, {0.62: A, 0.63: B, 0.99: B}),  # a .5 of .8 = .625
        ({"top_k": 1}, {0.0: A, 0.99: A}),
        ({"top_k": 50}, {0.49: A, 0.51: B, 0.81: C}),
        ({"top_p": 0.75}, {0.62: A, 0.63: B, 0.99: B}),  # .5 + .3 reach .75
        ({"top_p": 0.49}, {0.99: A}),
        ({"top_p": 0.0}, {0.99: A}),  # the most likely token is always kept
        ({"top_p": 0.81}, {0.79: B, 0.81: C}),
        (
            {"top_k": 2, "top_p": 0.6},
            {0.0: A, 0.99: A},
        ),  # of the two a has .625, which reaches .6; of all it has .5, which does not
        ({"top_k": 2, "temperature": 0.5}, {0.73: A, 0.74: B}),  # .25 of .34 = .735
    ],
)
def test_what_is_drawn_by_hand(monkeypatch, options, drawn):
    def numbers(seed, image_ids, samples, length):
        return np.array([*drawn]).reshape(1, samples, 1).repeat(length, 2)

    monkeypatch.setattr(module, "random_numbers", numbers)
    [found] = sample(one_word, [0], len(drawn), **options)
    assert Counter(h.tokens[0] for h in found) == Counter(drawn.values())
    probability = {A: 0.5, B: 0.3, C: 0.2}
    for hypothesis in found:  # the model's own probability, without temperature, top-k and top-p
        assert hypothesis.log_probability == pytest.approx(math.log(probability[hypothesis.tokens[0]]))


def test_captions_come_as_often_as_the_model_says():
    """P(a) = .7 * .5, P(ab) = .7 * .5, P(b) = .3 * .2, P(ba) = .3 * .8."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        rows = {(): probs(a=0.7, b=0.3), (A,): probs(end=0.5, b=0.5), (B,): probs(end=0.2, a=0.8)}
        return rows.get(prefix, probs(end=1.0))

    found = sample(table, range(400), 10)
    counts = Counter(h.tokens for hypotheses in found for h in hypotheses)
    expected = {(A,): 0.35, (A, B): 0.35, (B,): 0.06, (B, A): 0.24}
    assert counts.total() == 4000 and set(counts) == set(expected)
    for tokens, probability in expected.items():  # within four standard deviations
        assert abs(counts[tokens] / 4000 - probability) < 4 * math.sqrt(probability * (1 - probability) / 4000)


def test_random_numbers_are_numpys_and_even():
    numbers = module.random_numbers(5, [12, 3], 2, 4)
    assert numbers.shape == (2, 2, 4)
    assert numbers[1, 1].tolist() == np.random.default_rng((5, 3, 1)).random(4).tolist()
    assert np.unique(numbers).size == 16
    many = module.random_numbers(1, range(200), 5, 20)  # no trend over images, samples or tokens
    for axis in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(many.mean(axis) - 0.5).max() < 4.5 * math.sqrt(1 / 12 / (many.size / many.mean(axis).size))


OPTIONS = [{}, {"temperature": 1.7}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 6, "top_p": 0.9, "temperature": 1.3}]


@pytest.mark.parametrize("options", OPTIONS)
def test_an_images_samples_do_not_depend_on_the_batch_or_their_number(options):
    table = random_table(1, vocabulary=30, end=3)
    order = [7, 3, 11, 0, 5, 1, 10, 2, 4, 9, 8, 6]
    together = sample(table, order, 4, **options)
    for number, hypotheses in zip(order, together, strict=True):
        assert sample(table, [number], 4, **options) == [hypotheses]
        fewer = sample(table, [number], 2, **options)[0]
        assert {h.tokens for h in fewer} <= {h.tokens for h in hypotheses}
    assert sample(table, order, 4, **options) == together
    assert sample(table, order, 4, seed=2, **options) != together
    assert len({h.tokens for hypotheses in together for h in hypotheses}) > 20


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-3}])
def test_limits_of_the_options_are_greedy_search(options):
    table = random_table(3, vocabulary=40, end=4)
    decoder = TableDecoder(table)
    greedy = search(decoder, decoder.encode(images(*range(8))), 8, BeamStrategy(1), Constraints(12, 1))
    for [expected], hypotheses in zip(greedy, sample(table, range(8), 3, **options), strict=True):
        assert {h.tokens for h in hypotheses} == {expected.tokens}
        assert hypotheses[0].log_probability == pytest.approx(expected.log_probability, abs=1e-12)


def test_stopping_early_changes_nothing():
    table = random_table(3, vocabulary=12, end=3)
    full, best = sample(table, range(20), 5), sample(table, range(20), 5, keep=1)
    assert [h[0] for h in full] == [h for [h] in best]


def test_constraints_hold():
    table = random_table(7, vocabulary=9, end=0.3)
    found = sample(table, range(30), 4, constraints=Constraints(8, 3, no_repeat_ngram=2))
    for hypotheses in found:
        for hypothesis in hypotheses:
            tokens = hypothesis.tokens
            assert 3 <= len(tokens) <= 8 and not {PAD, START, UNK, END} & {*tokens}
            assert len({*zip(tokens, tokens[1:])}) == len(tokens) - 1


def test_samples_that_cannot_end_are_an_error():
    """At least three tokens, none of them twice, out of two tokens."""
    with pytest.raises(CaptionerError, match="no_repeat_ngram"):
        sample(lambda *_: probs(end=0.2, a=0.5, b=0.3), [0], 3, constraints=Constraints(8, 3, no_repeat_ngram=1))


def test_values_that_are_not_finite_are_an_error():
    with pytest.raises(CaptionerError, match="not finite"):
        sample(lambda *_: torch.full((7,), math.nan), [0], 2)
