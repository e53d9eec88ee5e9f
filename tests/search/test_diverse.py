"""Diverse beam search on tables whose answers are computed by hand, against the paper's algorithm as a loop, and its
properties."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from captioner.search import BeamStrategy, Constraints, DiverseStrategy, search
from captioner.vocabulary.vocabulary import END, PAD, START, UNK
from tests.search.tables import A, B, C, TableDecoder, images, probs, random_table


def diverse(table, indices, size, groups, penalty, keep=None, max_length=12, **more):
    decoder, features = TableDecoder(table), images(*indices)
    memory = decoder.encode(features)
    keep = size if keep is None else keep
    return search(
        decoder,
        memory,
        len(indices),
        DiverseStrategy(size, groups, penalty),
        Constraints(max_length, 1),
        keep=keep,
        **more,
    )


def one_word(_: int, prefix: tuple[int, ...]) -> list[float]:
    return probs(a=0.5, b=0.3, c=0.2) if not prefix else probs(end=1.0)


@pytest.mark.parametrize(
    ("penalty", "first_words"),
    [
        (0.0, [A, A, A]),
        (0.3, [A, A, B]),  # log .5 - .3 = -.993 is above log .3 = -1.204, log .5 - 2 * .3 = -1.293 is below
        (0.6, [A, B, A]),  # -1.293 < -1.204; then a has -1.293, b -1.804, c -1.609
        (1.0, [A, B, C]),  # a -1.693, b -2.204, c -1.609
    ],
)
def test_the_penalty_by_hand(penalty, first_words):
    """Three groups of one. The second loses the penalty for what the first took, the third for each time that the two
    took it."""
    [found] = diverse(one_word, [0], 3, 3, penalty)
    assert sorted(h.tokens for h in found) == sorted((word,) for word in first_words)
    probability = {A: 0.5, B: 0.3, C: 0.2}
    for hypothesis in found:  # the penalty is not part of the log-probability
        assert hypothesis.log_probability == pytest.approx(math.log(probability[hypothesis.tokens[0]]))


def test_the_penalty_is_only_for_tokens_of_the_same_step():
    """Group 1: a (.6), then b (.7). Group 2 takes b at the first step because of the penalty. At the second step it is
    free to take a, since group 1 took b there: a .6 against b .4 - penalty. It does not carry its first penalty on. The
    third tokens are equal and certain."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        rows = {(): probs(a=0.6, b=0.4), (A,): probs(b=0.7, a=0.3), (B,): probs(a=0.6, b=0.4)}
        return rows.get(prefix, probs(end=1.0))

    [found] = diverse(table, [0], 2, 2, 1.0)
    assert [h.tokens for h in found] == [(A, B), (B, A)]
    assert [h.log_probability for h in found] == pytest.approx([math.log(0.6 * 0.7), math.log(0.4 * 0.6)])


def test_end_is_a_token_like_any_other_and_closed_groups_penalise_nothing():
    """Both groups take a at first (penalty .1). Group 1 ends (.5). Group 2 finds END at log .5 - .1 = -.793 above b's
    log .4 = -.916 and ends too. With .3 END has -.993: group 2 goes on with b and, group 1 being closed, ends without a
    penalty."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        if not prefix:
            return probs(a=0.9, b=0.1)
        return probs(end=0.5, b=0.4, c=0.1) if len(prefix) == 1 else probs(end=0.4, c=0.35, a=0.25)

    [alike] = diverse(table, [0], 2, 2, 0.1)
    assert [h.tokens for h in alike] == [(A,), (A,)]
    [found] = diverse(table, [0], 2, 2, 0.3)
    assert [h.tokens for h in found] == [(A,), (A, B)]
    assert found[1].log_probability == pytest.approx(math.log(0.9 * 0.4 * 0.4))


def reference(
    table, index: int, size: int, groups: int, penalty: float, longest: int
) -> list[tuple[tuple[int, ...], float]]:
    """Algorithm 1 of the paper with lists: at each step the groups one after another, by the augmented
    log-probability."""
    active = [[((), 0.0)] for _ in range(groups)]
    slots = [size // groups] * groups
    finished = []
    for length in range(longest + 1):
        earlier: Counter[int] = Counter()
        for group in range(groups):
            candidates = []
            for prefix, total in active[group]:
                row = table(index, prefix)
                allowed = (
                    [END]
                    if length == longest
                    else [w for w in range(len(row)) if w not in (PAD, START, UNK) and (length or w != END)]
                )
                for token in allowed:
                    plain = total + math.log(row[token])
                    candidates.append((plain - penalty * earlier[token], plain, prefix, token))
            chosen = sorted(candidates, key=lambda c: -c[0])[: slots[group]]
            finished += [(prefix, plain) for _, plain, prefix, token in chosen if token == END]
            slots[group] -= sum(token == END for *_, token in chosen)
            active[group] = [((*prefix, token), plain) for _, plain, prefix, token in chosen if token != END]
            earlier.update(token for *_, token in chosen)
    return sorted(finished, key=lambda f: -f[1])


@pytest.mark.parametrize(("size", "groups"), [(4, 2), (6, 3), (3, 3), (4, 1), (8, 2)])
@pytest.mark.parametrize("vocabulary", [12, 600])
def test_same_as_the_papers_algorithm_as_a_loop(size, groups, vocabulary):
    table = random_table(4, vocabulary, end=6 if vocabulary == 12 else 150)
    indices = [3, 0, 5, 8]
    found = diverse(table, indices, size, groups, 0.7, max_length=6)
    lengths = set()
    for index, hypotheses in zip(indices, found, strict=True):
        expected = reference(table, index, size, groups, 0.7, 6)
        assert [h.tokens for h in hypotheses] == [tokens for tokens, _ in expected]
        assert [h.log_probability for h in hypotheses] == pytest.approx([total for _, total in expected], abs=1e-12)
        lengths |= {len(h.tokens) for h in hypotheses}
    assert len(lengths) > 2


def test_one_group_is_beam_search():
    table = random_table(1, vocabulary=30, end=3)
    decoder, features = TableDecoder(table), images(*range(10))
    beam = search(decoder, decoder.encode(features), 10, BeamStrategy(4), Constraints(10, 1), keep=4)
    assert diverse(table, range(10), 4, 1, 5.0, max_length=10) == beam


def test_the_first_group_is_beam_search_of_its_size():
    """Whatever the penalty, its captions are among those found."""
    table = random_table(2, vocabulary=30, end=3)
    decoder, features = TableDecoder(table), images(*range(10))
    beam = search(decoder, decoder.encode(features), 10, BeamStrategy(2), Constraints(10, 1), keep=2)
    for ours, theirs in zip(diverse(table, range(10), 6, 3, 2.0, max_length=10), beam, strict=True):
        assert {h.tokens for h in theirs} <= {h.tokens for h in ours}


def test_a_penalty_makes_captions_differ():
    """Pairs of captions of an image that begin with the same token: many in beam search, none with a large penalty."""
    table = random_table(6, vocabulary=20)

    def alike(found) -> int:
        return sum(
            count * (count - 1) // 2
            for hypotheses in found
            for count in Counter(h.tokens[0] for h in hypotheses).values()
        )

    assert alike(diverse(table, range(20), 4, 1, 0.0)) > 20
    assert alike(diverse(table, range(20), 4, 4, 1e3)) == 0


def test_stopping_early_and_the_batch_change_nothing():
    table = random_table(3, vocabulary=12, end=3)
    order = [7, 3, 3, 11, 0, 5, 1, 10, 2, 4]
    full = diverse(table, order, 6, 3, 0.5, length_normalisation=1.0)
    best = diverse(table, order, 6, 3, 0.5, keep=1, length_normalisation=1.0)
    assert [h[0] for h in full] == [h for [h] in best]
    for number, hypotheses in zip(order, full, strict=True):
        assert diverse(table, [number], 6, 3, 0.5, length_normalisation=1.0) == [hypotheses]


def test_groups_divide_the_beam():
    with pytest.raises(ValueError, match="5 hypotheses in 2 groups"):
        DiverseStrategy(5, 2, 0.5)


def test_values_that_are_not_finite_are_an_error():
    from captioner.errors import CaptionerError

    with pytest.raises(CaptionerError, match="not finite"):
        diverse(lambda *_: torch.full((7,), math.nan), [0], 2, 2, 0.5)
