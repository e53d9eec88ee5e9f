"""An ensemble's probabilities are the means of its members', in search and under teacher forcing."""

from __future__ import annotations

import math

import pytest
import torch

from captioner.decoder import DecoderConfig, build_decoder
from captioner.search import Ensemble, beam_search
from captioner.vocabulary.vocabulary import END, START
from tests.evaluation.small import fill
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


def decoders(*kinds: tuple[str, str]) -> list[torch.nn.Module]:
    made = []
    for seed, (cell, attention) in enumerate(kinds):
        decoder = build_decoder(
            DecoderConfig(cell, attention, 60, 12, 20, 9, feature_size=16, hidden_size=24, attention_size=16)
        )
        fill(decoder, seed=seed, sharpness=6.0, end=3.0)
        made.append(decoder.eval().double())
    return made


def test_a_model_with_itself_is_the_model():
    [decoder] = decoders(("gru", "soft"))
    grids = torch.randn(10, 9, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone, twice = (beam_search(each, grids, 3, max_length=12) for each in (decoder, Ensemble([decoder, decoder])))
    assert [h.tokens for [h] in twice] == [h.tokens for [h] in alone]
    assert [h.score for [h] in twice] == pytest.approx([h.score for [h] in alone], abs=1e-12)


@torch.no_grad()
def test_teacher_forcing_agrees_with_steps():
    """Different kinds of decoders; the log-probabilities that teacher forcing gives a caption are those of steps,
    averaged by hand."""
    members = decoders(("gru", "soft"), ("lstm", "dot"), ("gru", "none"))
    grids = torch.randn(2, 9, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    captions = torch.tensor(
        [[[START, 7, 9, 11, END, 0], [START, 5, END, 0, 0, 0]], [[START, 30, 8, 7, 9, END], [START, 6, 6, END, 0, 0]]]
    )
    outputs = Ensemble(members)(grids, captions)
    found = -torch.nn.functional.cross_entropy(outputs.logits, outputs.targets, reduction="none")
    for row, (caption, step) in enumerate(zip(outputs.caption.tolist(), outputs.step.tolist())):
        image, tokens = caption // 2, captions.view(4, -1)[caption].tolist()
        probabilities = []
        for member in members:
            memory = member.encode(grids[[image]])
            state = member.start(memory, 1)
            for word in tokens[: step + 1]:
                logits, state, _ = member.step(torch.tensor([[word]]), state, memory)
            probabilities.append(float(logits[0].softmax(-1)[tokens[step + 1]]))
        assert float(found[row]) == pytest.approx(math.log(sum(probabilities) / 3), abs=1e-10)
    assert torch.allclose(outputs.logits.exp().sum(-1), torch.ones(len(found), dtype=torch.float64))
