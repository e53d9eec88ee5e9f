"""Fixed shapes, as a CUDA graph needs them, give the same captions as a batch that shrinks."""

from __future__ import annotations

import pytest

from captioner.search import BeamStrategy, Constraints, DiverseStrategy, Hypothesis, SamplingStrategy, Strategy, search
from tests.search.tables import TableDecoder, images, random_table

INDICES = [3, 0, 5, 8, 1, 1, 9, 2]


def run(strategy: Strategy, fixed_shapes: bool | None, keep: int) -> tuple[list[list[Hypothesis]], TableDecoder]:
    decoder = TableDecoder(random_table(2, vocabulary=30, end=6))
    memory = decoder.encode(images(*INDICES))
    constraints = Constraints(10, 1, no_repeat_ngram=2)
    found = search(
        decoder,
        memory,
        len(INDICES),
        strategy,
        constraints,
        length_normalisation=1.0,
        keep=keep,
        attention=True,
        fixed_shapes=fixed_shapes,
    )
    return found, decoder


@pytest.mark.parametrize("keep", [1, 6])
@pytest.mark.parametrize(
    "strategy",
    [
        BeamStrategy(1),
        BeamStrategy(6),
        DiverseStrategy(6, 1, 0.7),
        DiverseStrategy(6, 3, 0.7),
        SamplingStrategy(6, INDICES, 10),
        SamplingStrategy(6, INDICES, 10, temperature=1.5, top_k=8, top_p=0.9),
    ],
)
def test_same_captions(strategy, keep):
    (fixed, fixed_decoder), (cut, cut_decoder) = (run(strategy, flag, keep) for flag in (True, False))
    for ours, theirs in zip(fixed, cut, strict=True):
        assert [(h.tokens, h.log_probability, h.score) for h in ours] == [
            (h.tokens, h.log_probability, h.score) for h in theirs
        ]
        assert [h.attention.tolist() for h in ours] == [h.attention.tolist() for h in theirs]
    first, *others = fixed_decoder.shapes
    assert first == (8, 1) and set(others) == {(8, strategy.beam_size)}
    assert len(fixed_decoder.shapes) == len(cut_decoder.shapes)
    assert sum(a * b for a, b in cut_decoder.shapes) <= sum(a * b for a, b in fixed_decoder.shapes)


def test_shapes_are_not_fixed_on_a_cpu():
    _, default = run(BeamStrategy(6), None, 1)
    _, cut = run(BeamStrategy(6), False, 1)
    assert default.shapes == cut.shapes
