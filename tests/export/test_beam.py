"""Beam search in numpy finds what ``captioner.search`` finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from captioner.captioning.onnx.beam import beam_search
from captioner.captioning.onnx.files import SearchRules
from captioner.errors import CaptionerError
from captioner.search import beam_search as torch_beam_search
from tests.search.tables import A, B, C, TableDecoder, TableMemory, TableState, images, probs, random_table


def search(decoder: TableDecoder, count: int, rules: SearchRules, beam: int, keep: int = 1, attention: bool = False):
    """Search in numpy over ``count`` images, each with its table."""

    def step(tokens, memory, state):
        logits, after, weights = decoder.step(
            torch.from_numpy(tokens), TableState(torch.from_numpy(state[0])), TableMemory(torch.from_numpy(memory[0]))
        )
        return logits.numpy(), weights.numpy(), [after.prefixes.numpy()]

    begin = [np.zeros((count, 1, 0), np.int64)]
    return beam_search(step, [np.arange(count)], begin, rules, beam, keep, attention)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize(
    ("min_length", "max_length", "power", "end"), [(1, 6, 1.0, 1.0), (0, 4, 0.0, 3.0), (3, 9, 0.7, 6.0)]
)
def test_same_as_torch_on_random_tables(beam: int, min_length: int, max_length: int, power: float, end: float) -> None:
    decoder = TableDecoder(random_table(beam, 9, end))
    theirs = torch_beam_search(decoder, images(*range(12)), beam, max_length, min_length, power, keep=3, attention=True)
    ours = search(decoder, 12, SearchRules(max_length, min_length, power), beam, 3, True)
    assert [[one.tokens for one in found] for found in ours] == [[one.tokens for one in found] for found in theirs]
    for found, wanted in zip(ours, theirs, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert one.log_probability == pytest.approx(other.log_probability, abs=1e-12)
            assert one.score == pytest.approx(other.score, abs=1e-12)
            assert np.array_equal(one.attention, other.attention.numpy())
    lengths = {len(one.tokens) for found in ours for one in found}
    assert len(lengths) > 1 and min(lengths) >= min_length and max(lengths) <= max_length


def test_a_table_by_hand() -> None:
    """P(A) = .6 and P(B) = .4; after A END has .1 and C .9, after B END has .5 and C .5; C always ends. With
    power 1 the caption "A C" scores ln(.6 * .9) / 3 and "B" ln(.4 * .5) / 2, "B C" ln(.4 * .5) / 3."""

    def table(_: int, prefix: tuple[int, ...]):
        rows = {(): probs(a=0.6, b=0.4), (A,): probs(end=0.1, c=0.9), (B,): probs(end=0.5, c=0.5)}
        return rows.get(prefix, probs(end=1.0))

    [found] = search(TableDecoder(table), 1, SearchRules(5, 1, 1.0), 3, 3)
    assert [one.tokens for one in found] == [(A, C), (B, C), (B,)]
    scores = [math.log(0.54) / 3, math.log(0.2) / 3, math.log(0.2) / 2]
    assert [one.score for one in found] == pytest.approx(scores)
    [[plain]] = search(TableDecoder(table), 1, SearchRules(5, 1, 0.0), 3)
    assert plain.score == plain.log_probability == pytest.approx(math.log(0.54)) and plain.attention is None
    [[short]] = search(TableDecoder(table), 1, SearchRules(1, 1, 1.0), 3)  # END alone may follow one word
    assert short.tokens == (B,)
    [[long]] = search(TableDecoder(table), 1, SearchRules(5, 2, 1.0), 1)
    assert long.tokens == (A, C)


def test_of_equal_scores_the_one_that_finished_first_is_better_and_of_equal_words_the_first() -> None:
    """All of A, B and C have 1/3, and END follows at once: three equal captions."""

    def table(_: int, prefix: tuple[int, ...]):
        return probs(end=1.0) if prefix else probs(a=1 / 3, b=1 / 3, c=1 / 3)

    [found] = search(TableDecoder(table), 1, SearchRules(5, 1, 1.0), 3, 3)
    assert [one.tokens for one in found] == [(A,), (B,), (C,)]
    [[best]] = search(TableDecoder(table), 1, SearchRules(5, 1, 1.0), 1)
    assert best.tokens == (A,)

    def later(_: int, prefix: tuple[int, ...]):
        """B at once, and A C: the same sum."""
        rows = {(): probs(a=0.5, b=0.5), (A,): probs(c=1.0), (B,): probs(end=1.0)}
        return rows.get(prefix, probs(end=1.0))

    [found] = search(TableDecoder(later), 1, SearchRules(5, 1, 0.0), 2, 2)
    assert [one.tokens for one in found] == [(B,), (A, C)]
    theirs = torch_beam_search(TableDecoder(later), images(0), 2, 5, 1, 0.0, keep=2)
    assert [one.tokens for one in theirs[0]] == [(B,), (A, C)]


def test_special_tokens_are_never_chosen() -> None:
    decoder = TableDecoder(lambda _, prefix: probs(end=0.1, a=0.1, unk=0.3, pad=0.3, start=0.2))
    [[best]] = search(decoder, 1, SearchRules(3, 1, 1.0), 1)
    assert set(best.tokens) == {A}
    assert best.log_probability == pytest.approx((len(best.tokens) + 1) * math.log(0.1))


def test_values_that_are_not_finite_and_a_vocabulary_without_words() -> None:
    with pytest.raises(CaptionerError, match="values that are not finite; its training diverged"):
        search(TableDecoder(lambda _, prefix: [math.nan] * 7), 2, SearchRules(3, 1, 1.0), 2)
    with pytest.raises(CaptionerError, match="allows no caption"):
        search(TableDecoder(lambda _, prefix: probs(end=1.0)), 1, SearchRules(3, 1, 1.0), 2)


def test_no_image() -> None:
    assert search(TableDecoder(random_table(1, 9)), 0, SearchRules(3, 1, 1.0), 2) == []


def test_a_caption_of_no_words() -> None:
    [[best]] = search(TableDecoder(lambda _, prefix: probs(end=0.9, a=0.1)), 1, SearchRules(3, 0, 1.0), 2, 1, True)
    assert best.tokens == () and best.score == best.log_probability == pytest.approx(math.log(0.9))
    assert best.attention.shape == (0, 3)
