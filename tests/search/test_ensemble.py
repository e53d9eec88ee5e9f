"""An ensemble's probabilities are the means of its members', in search and under teacher forcing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from captioner.search import BeamStrategy, Constraints, Ensemble, beam_search, search
from captioner.vocabulary.vocabulary import END, PAD, START
from tests.search.real_decoders import random_features, sharp_decoder, stepped_log_probabilities
from tests.search.tables import A, B, C, TableDecoder, images, probs, random_table


def test_by_hand():
    """a .6 and .1, b .3 and .5, c .1 and .4: means .35, .40, .25, so b; then END .9 and .5, which is .7."""
    one = TableDecoder(lambda _, prefix: probs(a=0.6, b=0.3, c=0.1) if not prefix else probs(end=0.9, a=0.1))
    two = TableDecoder(lambda _, prefix: probs(a=0.1, b=0.5, c=0.4) if not prefix else probs(end=0.5, b=0.5))
    [[found]] = beam_search(Ensemble([one, two]), images(0), beam_size=1)
    assert found.tokens == (B,) and found.log_probability == pytest.approx(math.log(0.40 * 0.70))


def test_probabilities_are_averaged_not_their_logarithms():
    """a: .9 and .02, mean .46, geometric mean .134; b: .1 and .3, mean .2, geometric mean .173."""
    one = TableDecoder(lambda _, prefix: probs(a=0.9, b=0.1) if not prefix else probs(end=1.0))
    two = TableDecoder(lambda _, prefix: probs(a=0.02, b=0.3, c=0.68) if not prefix else probs(end=1.0))
    [[found]] = beam_search(Ensemble([one, two]), images(0), beam_size=1)
    assert found.tokens == (A,) and found.log_probability == pytest.approx(math.log(0.46))
    [hypotheses] = beam_search(Ensemble([one, two]), images(0), beam_size=3, keep=3, length_normalisation=0.0)
    assert {h.tokens: h.log_probability for h in hypotheses} == pytest.approx(
        {(A,): math.log(0.46), (B,): math.log(0.2), (C,): math.log(0.34)}
    )


@pytest.mark.parametrize("beam", [1, 4])
def test_same_as_the_table_of_means(beam):
    """Images leave the batch and hypotheses are reordered, for every member alike."""
    tables = [random_table(seed, vocabulary=25, end=3) for seed in range(3)]
    mean = TableDecoder(lambda number, prefix: sum(table(number, prefix) for table in tables) / 3)
    ours = beam_search(
        Ensemble([TableDecoder(table) for table in tables]),
        images(*range(12)),
        beam,
        max_length=10,
        keep=beam,
        attention=True,
    )
    theirs = beam_search(mean, images(*range(12)), beam, max_length=10, keep=beam, attention=True)
    for found, expected in zip(ours, theirs, strict=True):
        assert [h.tokens for h in found] == [h.tokens for h in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-12)
        assert all(torch.allclose(a.attention, b.attention) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("fixed_shapes", [True, False])
def test_teacher_forcing_of_tables(fixed_shapes):
    """Teacher forcing gives the log-probabilities of search, and the tokens that are not PAD in row-major order."""
    ensemble = Ensemble([TableDecoder(random_table(seed, vocabulary=25, end=3)) for seed in range(3)])
    memory = ensemble.encode(images(3, 7))
    found = search(
        ensemble, memory, 2, BeamStrategy(2), Constraints(6, 1), keep=2, attention=True, fixed_shapes=fixed_shapes
    )
    longest = max(len(h.tokens) for hypotheses in found for h in hypotheses)
    rows = [[[START, *h.tokens] + [PAD] * (longest - len(h.tokens)) for h in hypotheses] for hypotheses in found]
    targets = torch.tensor([token for hypotheses in found for h in hypotheses for token in (*h.tokens, END)])
    logits, attention = ensemble(memory, torch.tensor(rows))
    log_probabilities = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    assert torch.allclose(logits.exp().sum(-1), torch.ones(len(targets), dtype=torch.float64))
    assert attention.shape == (2, 2, longest + 1, 3)
    first = 0
    for image, hypotheses in enumerate(found):
        for caption, hypothesis in enumerate(hypotheses):
            length = len(hypothesis.tokens)
            expected = float(log_probabilities[first : first + length + 1].sum())
            assert hypothesis.log_probability == pytest.approx(expected, abs=1e-12)
            assert torch.equal(attention[image, caption, :length], hypothesis.attention)
            first += length + 1
    assert first == len(targets)


def test_a_model_with_itself_is_the_model():
    decoder, features = sharp_decoder("gru", "soft"), random_features(10)
    alone, twice = (beam_search(each, features, 3, max_length=12) for each in (decoder, Ensemble([decoder, decoder])))
    assert [h.tokens for [h] in twice] == [h.tokens for [h] in alone]
    assert [h.score for [h] in twice] == pytest.approx([h.score for [h] in alone], abs=1e-12)


@torch.no_grad()
def test_teacher_forcing_agrees_with_steps():
    """Different kinds of decoders; teacher forcing gives the probabilities of steps, averaged by hand."""
    kinds = (("gru", "soft"), ("lstm", "dot"), ("gru", "none"))
    members = [sharp_decoder(*kind, vocabulary=60, sharpness=6.0, seed=n) for n, kind in enumerate(kinds)]
    features = random_features(2)
    captions = [[(7, 9, 11), (5,)], [(30, 8, 7, 9), (6, 6)]]
    tokens = torch.full((2, 2, 5), PAD)
    for image, caption in itertools.product(range(2), range(2)):
        row = captions[image][caption]
        tokens[image, caption, : len(row) + 1] = torch.tensor([START, *row])
    ensemble = Ensemble(members)
    logits, _ = ensemble(ensemble.encode(features), tokens)
    expected = [
        torch.stack([stepped_log_probabilities(member, features[[image]], caption).exp() for member in members]).mean(0)
        for image in range(2)
        for caption in captions[image]
    ]
    assert torch.allclose(logits.exp(), torch.cat(expected), rtol=1e-9, atol=1e-14)
