"""What a caption may not contain."""

from __future__ import annotations

import math

import pytest
import torch

from captioner.errors import CaptionerError
from captioner.search import Constraints, beam_search, prefix_words
from captioner.vocabulary.vocabulary import END, PAD, SPECIALS, START, UNK, Vocabulary
from tests.search.tables import A, B, C, TableDecoder, images, probs, random_table


@pytest.mark.parametrize("beam", [1, 3])
def test_special_tokens_are_never_chosen(beam):
    """UNK, PAD and START are the most likely tokens everywhere."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        return (
            probs(unk=0.4, pad=0.2, start=0.2, a=0.15, end=0.05) if len(prefix) < 2 else probs(unk=0.5, end=0.3, a=0.2)
        )

    [hypotheses] = beam_search(TableDecoder(table), images(0), beam_size=beam, keep=beam)
    assert not {PAD, START, UNK, END} & {token for hypothesis in hypotheses for token in hypothesis.tokens}
    # the bans leave the other probabilities as the model gave them
    likeliest = max(hypotheses, key=lambda hypothesis: hypothesis.log_probability)
    assert likeliest.log_probability == pytest.approx(math.log(0.15 * 0.05 if beam > 1 else 0.15 * 0.15 * 0.3))


def ever(_: int, prefix: tuple[int, ...]) -> list[float]:
    return probs(end=0.1, a=0.5, b=0.4)


def soon(_: int, prefix: tuple[int, ...]) -> list[float]:
    return probs(end=0.8, a=0.15, b=0.05)


@pytest.mark.parametrize("beam", [1, 4])
def test_longest_caption(beam):
    [[found]] = beam_search(TableDecoder(ever), images(0), beam_size=1, max_length=6)
    assert found.tokens == (A,) * 6
    # only END is left, and its probability counts
    assert found.log_probability == pytest.approx(6 * math.log(0.5) + math.log(0.1))
    [hypotheses] = beam_search(TableDecoder(ever), images(0), beam_size=beam, max_length=6, keep=beam)
    assert all(1 <= len(hypothesis.tokens) <= 6 for hypothesis in hypotheses)


@pytest.mark.parametrize("beam", [1, 4])
def test_shortest_caption(beam):
    for shortest in (1, 2, 5):
        [hypotheses] = beam_search(TableDecoder(soon), images(0), beam_size=beam, min_length=shortest, keep=beam)
        assert min(len(hypothesis.tokens) for hypothesis in hypotheses) == shortest
    [[empty]] = beam_search(TableDecoder(soon), images(0), beam_size=1, min_length=0)
    assert empty.tokens == () and empty.score == pytest.approx(math.log(0.8))


def test_no_bigram_twice_by_hand():
    """Greedy over a (0.6), b (0.3), c (0.09) at every step, no bigram twice: a a b a c a; then aa, ab, ac are used."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        return probs(a=0.6, b=0.3, c=0.09, end=0.01)

    [[found]] = beam_search(TableDecoder(table), images(0), beam_size=1, no_repeat_ngram=2, max_length=20)
    assert found.tokens == (A, A, B, A, C, A)
    [[found]] = beam_search(TableDecoder(table), images(0), beam_size=1, no_repeat_ngram=1, max_length=20)
    assert found.tokens == (A, B, C)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_twice(size):
    table = random_table(7, vocabulary=9, end=0.3)
    found = beam_search(
        TableDecoder(table), images(*range(10)), beam_size=4, no_repeat_ngram=size, max_length=15, keep=4
    )
    free = beam_search(TableDecoder(table), images(*range(10)), beam_size=4, max_length=15, keep=4)

    def repeats(tokens: tuple[int, ...]) -> bool:
        ngrams = [tokens[start : start + size] for start in range(len(tokens) - size + 1)]
        return len(set(ngrams)) < len(ngrams)

    assert not any(repeats(hypothesis.tokens) for hypotheses in found for hypothesis in hypotheses)
    assert any(repeats(hypothesis.tokens) for hypotheses in free for hypothesis in hypotheses)


def test_constraints_that_leave_nothing_are_an_error():
    with pytest.raises(CaptionerError, match="min_length.*no_repeat_ngram"):
        beam_search(TableDecoder(ever), images(0), beam_size=2, min_length=5, no_repeat_ngram=1)


def test_bans_are_written_in_place():
    logits = torch.zeros(2, 7)
    Constraints(max_length=5, min_length=1).apply(logits, 0)
    assert logits[0].tolist() == [-math.inf, -math.inf, -math.inf, -math.inf, 0, 0, 0]
    logits = torch.zeros(2, 7)
    Constraints(max_length=5).apply(logits, 5)
    assert logits[1].isfinite().tolist() == [False, False, True, False, False, False, False]


@pytest.mark.parametrize("beam", [1, 3])
def test_prefix_by_hand(beam):
    """Greedy would choose a a ... After the prefix c b the most likely token is a. The probabilities of the prefix
    count."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        return probs(a=0.6, b=0.3, c=0.1) if len(prefix) < 3 else probs(end=0.8, a=0.2)

    [hypotheses] = beam_search(
        TableDecoder(table),
        images(0),
        beam_size=beam,
        prefix=(C, B),
        length_normalisation=0.0,
        keep=beam,
        max_length=3,
    )
    assert hypotheses[0].tokens == (C, B, A)
    assert hypotheses[0].log_probability == pytest.approx(math.log(0.1 * 0.3 * 0.6 * 0.8))
    assert {h.tokens for h in hypotheses} == {(C, B, A), (C, B, B), (C, B, C)} if beam == 3 else True


@pytest.mark.parametrize("beam", [1, 4])
def test_a_prefix_goes_before_other_bans(beam):
    """A repeated token, and as many tokens as a caption may have: only END is left."""
    [[found]] = beam_search(
        TableDecoder(ever), images(0), beam_size=beam, prefix=(B, B, B), no_repeat_ngram=1, max_length=3
    )
    assert found.tokens == (B, B, B) and found.log_probability == pytest.approx(3 * math.log(0.4) + math.log(0.1))
    [[found]] = beam_search(TableDecoder(ever), images(0), beam_size=beam, prefix=(B,), no_repeat_ngram=1, max_length=3)
    assert found.tokens == (B, A)  # the other bans hold after the prefix


def test_a_prefix_is_exhaustive_search_behind_it():
    """A beam that holds everything finds the captions found without a prefix that begin with it."""
    table = random_table(5, vocabulary=7)
    free, with_prefix = (
        beam_search(TableDecoder(table), images(0, 1), 120, max_length=4, keep=120, prefix=p) for p in ((), (B, A))
    )
    for every, found in zip(free, with_prefix, strict=True):
        expected = [h for h in every if h.tokens[:2] == (B, A)]
        assert [h.tokens for h in found] == [h.tokens for h in expected] and len(found) == 1 + 3 + 9
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-12)


def test_a_prefix_that_is_too_long():
    with pytest.raises(ValueError, match="prefix of 3 words, captions of at most 2"):
        Constraints(2, prefix=(A, B, A))


def test_prefix_words():
    vocabulary = Vocabulary([*SPECIALS, "a", "picture", "of"])
    assert prefix_words("A picture of ...", vocabulary, 5, "prefix") == (4, 5, 6)
    assert prefix_words("", vocabulary, 5, "prefix") == ()
    with pytest.raises(CaptionerError, match="prefix='a photo of': the word 'photo' is not in the model's vocabulary"):
        prefix_words("a photo of", vocabulary, 5, "prefix")
    with pytest.raises(CaptionerError, match="the word '<unk>' is not in"):
        prefix_words("<unk>", vocabulary, 5, "prefix")
    with pytest.raises(CaptionerError, match="prefix='a picture of': 3 words, but a caption may have 2"):
        prefix_words("a picture of", vocabulary, 2, "prefix")
