"""Beam search on tables whose answers are computed by hand, and its properties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from captioner.errors import CaptionerError
from captioner.search import BeamStrategy, Constraints, beam_search, search
from captioner.search.beam import _top, _top_of_blocks
from captioner.vocabulary.vocabulary import END, PAD, START, UNK
from tests.search.tables import A, B, C, TableDecoder, images, probs, random_table


def garden(_: int, prefix: tuple[int, ...]) -> list[float]:
    """Greedy takes a (0.6), which leads to 0.6 * 0.5 * 1; b (0.4) leads to 0.4 * 0.9 * 1."""
    if prefix == ():
        return probs(a=0.6, b=0.4)
    if prefix == (A,):
        return probs(end=0.5, a=0.3, b=0.2)
    if prefix == (B,):
        return probs(c=0.9, end=0.1)
    return probs(end=1.0)


def test_beam_two_finds_what_greedy_misses():
    [greedy], [beam] = (
        beam_search(TableDecoder(garden), images(0), beam_size=size, length_normalisation=0.0)[0] for size in (1, 2)
    )
    assert greedy.tokens == (A,) and greedy.log_probability == pytest.approx(math.log(0.6 * 0.5))
    assert beam.tokens == (B, C) and beam.log_probability == pytest.approx(math.log(0.4 * 0.9))


def trap(_: int, prefix: tuple[int, ...]) -> list[float]:
    """Greedy: a, c, END = 0.40 * 0.40 * 1 = 0.16. Beam 2 keeps a (0.40) and b (0.35); b's continuations 0.35 * 0.5 =
    0.175 (twice) push a's best (0.16) out, and then end with probability 0.5: 0.0875."""
    if prefix == ():
        return probs(a=0.40, b=0.35, c=0.25)
    if prefix == (A,):
        return probs(c=0.40, a=0.30, b=0.30)
    if prefix == (B,):
        return probs(a=0.5, b=0.5 - 1e-9, c=1e-9)
    if prefix[:1] == (B,) and len(prefix) == 2:
        return probs(end=0.5, a=0.25, b=0.25)
    return probs(end=1.0)


def test_beam_two_can_be_worse_than_greedy():
    [greedy], [beam] = (
        beam_search(TableDecoder(trap), images(0), beam_size=size, length_normalisation=0.0)[0] for size in (1, 2)
    )
    assert greedy.tokens == (A, C) and greedy.log_probability == pytest.approx(math.log(0.16))
    assert beam.tokens == (B, A) and beam.log_probability == pytest.approx(math.log(0.0875))


def test_length_normalisation_counts_the_end():
    """a END: 0.5 * 0.6 = 0.30 over 2. b c a END: 0.5 * 0.8 * 0.8 * 0.9 = 0.288 over 4. Sum: the first; mean: the
    second."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        rows = {(): probs(a=0.5 + 1e-9, b=0.5 - 1e-9), (A,): probs(end=0.6, c=0.4), (B,): probs(c=0.8, end=0.2)}
        rows |= {(B, C): probs(a=0.8, end=0.2), (B, C, A): probs(end=0.9, a=0.1)}
        return rows.get(prefix, probs(end=1.0))

    def best(alpha: float):
        return beam_search(TableDecoder(table), images(0), beam_size=4, length_normalisation=alpha)[0][0]

    assert best(0.0).tokens == (A,) and best(0.0).score == pytest.approx(math.log(0.30))
    assert best(1.0).tokens == (B, C, A) and best(1.0).score == pytest.approx(math.log(0.288) / 4)
    assert best(1.0).log_probability == pytest.approx(math.log(0.288), abs=1e-6)
    assert best(0.5).score == pytest.approx(math.log(0.288) / 4**0.5, abs=1e-6)


def test_length_reward_by_hand():
    """The same captions, log .30 with 2 words and log .288 with 4 (END counts): -1.204 and -1.245. A reward of .03 a
    word is worth more than that to the longer one, a reward of .02 is not; a penalty only widens the gap. Divided by
    length, .05 a word more adds .10 and .20."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        rows = {(): probs(a=0.5 + 1e-9, b=0.5 - 1e-9), (A,): probs(end=0.6, c=0.4), (B,): probs(c=0.8, end=0.2)}
        rows |= {(B, C): probs(a=0.8, end=0.2), (B, C, A): probs(end=0.9, a=0.1)}
        return rows.get(prefix, probs(end=1.0))

    def best(reward: float, alpha: float = 0.0):
        decoder, features = TableDecoder(table), images(0)
        found = search(
            decoder,
            decoder.encode(features),
            1,
            BeamStrategy(4),
            Constraints(30, 1),
            length_normalisation=alpha,
            length_reward=reward,
        )
        return found[0][0]

    assert best(0.02).tokens == (A,) and best(0.02).score == pytest.approx(math.log(0.30) + 0.04)
    assert best(0.03).tokens == (B, C, A) and best(0.03).score == pytest.approx(math.log(0.288) + 0.12, abs=1e-6)
    assert best(0.03).log_probability == pytest.approx(math.log(0.288), abs=1e-6)
    assert best(-1.0).tokens == (A,) and best(-1.0).score == pytest.approx(math.log(0.30) - 2)
    assert best(0.05, 1.0).score == pytest.approx(math.log(0.288) / 4 + 0.20, abs=1e-6)


def test_greedy_by_hand():
    """Beam 1 takes the most likely token at every step and stops at the first END, though going on would score
    better."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        return (
            probs(a=0.7, b=0.3) if len(prefix) < 2 else probs(end=0.51, a=0.49) if len(prefix) == 2 else probs(end=1.0)
        )

    decoder = TableDecoder(table)
    [[found]] = beam_search(decoder, images(0), beam_size=1, length_normalisation=5.0)
    assert found.tokens == (A, A) and found.log_probability == pytest.approx(math.log(0.7 * 0.7 * 0.51))
    assert len(decoder.batches) == 3


@pytest.mark.parametrize("seed", range(5))
def test_beam_one_is_greedy(seed):
    table = random_table(seed, vocabulary=40, end=4)
    found = beam_search(TableDecoder(table), images(*range(8)), beam_size=1, max_length=12)
    for number, [hypothesis] in enumerate(found):
        prefix, total = (), 0.0
        while True:
            row = table(number, prefix).clone()
            row[[PAD, START, UNK] + ([END] if not prefix else [])] = 0
            word = END if len(prefix) == 12 else int(row.argmax())
            total += math.log(table(number, prefix)[word])
            if word == END:
                break
            prefix += (word,)
        assert hypothesis.tokens == prefix
        assert hypothesis.log_probability == pytest.approx(total, abs=1e-12)
        assert hypothesis.score == pytest.approx(total / (len(prefix) + 1), abs=1e-12)


def log_probability(table, number: int, tokens: tuple[int, ...]) -> float:
    return sum(math.log(table(number, tokens[:length])[word]) for length, word in enumerate((*tokens, END)))


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_holds_every_prefix_is_exhaustive(seed, alpha):
    table = random_table(seed, vocabulary=7)
    longest = 4  # 3 + 9 + 27 + 81 = 120 captions of 1 to 4 words
    everything = [tokens for length in range(1, longest + 1) for tokens in itertools.product((A, B, C), repeat=length)]
    found = beam_search(
        TableDecoder(table), images(0, 1, 2), beam_size=120, max_length=longest, length_normalisation=alpha, keep=120
    )
    for number, hypotheses in enumerate(found):
        scored = sorted(
            ((log_probability(table, number, t) / (len(t) + 1) ** alpha, t) for t in everything), reverse=True
        )
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, tokens in scored]
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx(
            [score for score, _ in scored], abs=1e-12
        )


@pytest.mark.parametrize(("alpha", "reward"), [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (0.0, 0.7), (0.0, -0.7), (1.0, 0.1)])
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_stopping_early_changes_nothing(beam, alpha, reward):
    """The best of a search that may stop early is the best of one that must fill its beam (``keep`` = all stops
    last)."""
    table = random_table(3, vocabulary=12, end=3)
    early, late = TableDecoder(table), TableDecoder(table)
    options = {"length_normalisation": alpha, "length_reward": reward}
    memory = early.encode(images(*range(20)))
    best = search(early, memory, 20, BeamStrategy(beam), Constraints(9, 1), keep=1, **options)
    full = search(late, memory, 20, BeamStrategy(beam), Constraints(9, 1), keep=beam, **options)
    assert [hypotheses[0] for hypotheses in full] == [hypotheses[0] for hypotheses in best]
    assert sum(early.batches) <= sum(late.batches)
    for hypotheses in full:
        assert len({hypothesis.tokens for hypothesis in hypotheses}) == len(hypotheses) <= beam
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


def test_a_sure_end_stops_the_search_at_once():
    """END at 0.9 against active hypotheses below 0.1: with plain sums nothing can catch up, so no further step is
    taken."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        return probs(a=0.9, b=0.1) if not prefix else probs(end=0.9, a=0.06, b=0.04)

    decoder = TableDecoder(table)
    beam_search(decoder, images(0), beam_size=3, max_length=50, length_normalisation=0.0)
    assert len(decoder.batches) == 2


def test_the_bound_under_normalisation_lets_a_late_winner_win():
    """After `a END` (log 0.48 / 2) the active `b` has log 0.4. Compared at its own length it would be dropped, but 50
    certain tokens later it scores log 0.4 / 52."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        if not prefix:
            return probs(a=0.6, b=0.4)
        if prefix[0] == A:
            return probs(end=0.8, a=0.2)
        return probs(c=1.0) if len(prefix) < 51 else probs(end=1.0)

    [[found]] = beam_search(TableDecoder(table), images(0), beam_size=2, max_length=60)
    assert found.tokens == (B,) + (C,) * 50
    assert found.score == pytest.approx(math.log(0.4) / 52)


def test_batch_composition_and_order_change_nothing():
    table = random_table(1, vocabulary=30, end=3)
    alone = [
        beam_search(TableDecoder(table), images(n), beam_size=4, max_length=10, keep=4, attention=True)[0]
        for n in range(12)
    ]
    order = [7, 3, 3, 11, 0, 5, 1, 10, 2, 4, 9, 8, 6]
    together = beam_search(TableDecoder(table), images(*order), beam_size=4, max_length=10, keep=4, attention=True)
    for number, hypotheses in zip(order, together, strict=True):
        facts, expected = (
            [(h.tokens, h.log_probability, h.score) for h in found] for found in (hypotheses, alone[number])
        )
        assert facts == expected
        assert all(torch.equal(a.attention, b.attention) for a, b in zip(hypotheses, alone[number], strict=True))


def test_done_images_leave_the_batch():
    """Image n surely ends after n tokens. Each of 8 images is more than a sixteenth of the batch, so it leaves at
    once."""

    def table(number: int, prefix: tuple[int, ...]) -> list[float]:
        return probs(end=1.0) if len(prefix) >= number else probs(a=0.9, b=0.1)

    decoder = TableDecoder(table)
    found = beam_search(decoder, images(3, 1, 8, 2, 5, 4, 7, 6), beam_size=1)
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [3, 1, 8, 2, 5, 4, 7, 6]
    assert decoder.batches == [8, 8, 7, 6, 5, 4, 3, 2, 1]


def test_closed_slots_leave_the_batch():
    """Hypotheses that begin with A have one token, with B three, with C two."""

    def table(_: int, prefix: tuple[int, ...]) -> list[float]:
        if not prefix:
            return probs(a=0.6, b=0.3, c=0.1)
        return probs(end=1.0) if len(prefix) >= {A: 1, B: 3, C: 2}[prefix[0]] else probs(a=1.0)

    decoder = TableDecoder(table)
    [hypotheses] = beam_search(decoder, images(0), beam_size=3, keep=3, length_normalisation=0.0)
    assert [hypothesis.tokens for hypothesis in hypotheses] == [(A,), (B, A, A), (C, A)]
    assert decoder.shapes == [(1, 1), (1, 3), (1, 2), (1, 1)]


def test_done_images_below_a_sixteenth_stay():
    def table(number: int, prefix: tuple[int, ...]) -> list[float]:
        return probs(end=1.0) if len(prefix) >= number else probs(a=0.9, b=0.1)

    decoder = TableDecoder(table)
    found = beam_search(decoder, images(*([1, 2, 3] + [4] * 37)), beam_size=1)
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [1, 2, 3] + [4] * 37
    assert decoder.batches == [40, 40, 40, 40, 37]  # two of 40 are less than a sixteenth, three are more


def test_attention_belongs_to_each_word():
    """The weights of token t come from the hypothesis that it continues: (image, t tokens so far, the last token)."""
    table = random_table(5, vocabulary=25, end=2)
    found = beam_search(TableDecoder(table), images(4, 2, 9), beam_size=5, max_length=8, keep=5, attention=True)
    for number, hypotheses in zip((4, 2, 9), found, strict=True):
        for hypothesis in hypotheses:
            before = (START, *hypothesis.tokens[:-1])
            assert hypothesis.attention.tolist() == [[number, length, word] for length, word in enumerate(before)]
    assert beam_search(TableDecoder(table), images(4), beam_size=2)[0][0].attention is None


def test_more_slots_than_tokens():
    table = random_table(2, vocabulary=6)  # two tokens beside the special ones
    [hypotheses] = beam_search(TableDecoder(table), images(0), beam_size=50, max_length=3, keep=50)
    assert len(hypotheses) == 2 + 4 + 8


def test_no_images():
    assert beam_search(TableDecoder(garden), images(), beam_size=3) == []


def test_values_that_are_not_finite_are_an_error():
    with pytest.raises(CaptionerError, match="not finite"):
        beam_search(TableDecoder(lambda *_: [math.nan] * 7), images(0), beam_size=2)


@pytest.mark.parametrize("vocabulary", [512, 513, 1000, 1279, 9500])
@pytest.mark.parametrize("some_closed", [False, True])
def test_blocks_give_the_same_as_sorting_everything(vocabulary, some_closed):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(6, 4, vocabulary, generator=generator)
    logits[..., :4] = -math.inf
    logits[0, 0, -5:] += 10  # the last, shorter block
    logits[1, 1] = -math.inf
    logits[2, :, 6:] = -math.inf  # fewer tokens than asked for
    logits[2, 1:] = -math.inf
    offsets = torch.randn(6, 4, generator=generator)
    offsets[3, 2] = -math.inf
    if some_closed:
        offsets[0, 1] = offsets[3, 2:] = offsets[4, 0] = -math.inf
    totals, index = _top_of_blocks(logits, offsets, 4)
    expected, expected_index = _top((logits + offsets.unsqueeze(-1)).view(6, -1), 4)
    assert torch.equal(totals, expected)
    finite = expected > -math.inf
    assert torch.equal(index[finite], expected_index[finite])
    assert ((index >= 0) & (index < 4 * vocabulary)).all()
