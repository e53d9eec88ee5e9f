"""Draws have the distribution that they are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captioner.decoder.categorical import draw, draw_words


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Of outcomes that are possible; the others must not occur."""
    assert not counts[probabilities == 0].any()
    expected = counts.sum() * probabilities[probabilities > 0]
    return float(((counts[probabilities > 0] - expected) ** 2 / expected).sum())


WEIGHTS = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.04, 0.01], [0.0, 0.3, 0.0, 0.3, 0.4, 0.0]])


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_as_frequent_as_their_weights(scale: float, dtype: torch.dtype) -> None:
    """Chi-square with 5 degrees of freedom exceeds 20.5 once in 1,000, with 2 less often."""
    torch.manual_seed(1)
    drawn = draw((scale * WEIGHTS).cumsum(-1, dtype=dtype), 50_000)
    assert drawn.shape == (2, 50_000) and drawn.dtype == torch.int64
    for row, probabilities in zip(drawn, WEIGHTS):
        assert chi_square(row.bincount(minlength=6), probabilities) < 20.5
    pairs = drawn[0, ::2] * 6 + drawn[0, 1::2]  # one after the other, and in one row and the other: independent
    both = drawn[0] * 6 + drawn[1]
    assert chi_square(pairs.bincount(minlength=36), torch.outer(WEIGHTS[0], WEIGHTS[0]).flatten()) < 66.7  # 35
    assert chi_square(both.bincount(minlength=36), torch.outer(WEIGHTS[0], WEIGHTS[1]).flatten()) < 40.8  # 17 degrees


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_words_are_drawn_from_the_softmax(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    logits = (WEIGHTS.to(dtype).log() + torch.tensor([[40.0], [-40.0]])).unsqueeze(1).expand(2, 3, 6).contiguous()
    before = logits.clone()
    drawn = draw_words(logits, 20_000)
    assert drawn.shape == (2, 3, 20_000) and torch.equal(logits, before)
    for rows, probabilities in zip(drawn, WEIGHTS):
        for row in rows:
            assert chi_square(row.bincount(minlength=6), probabilities) < 20.5
    assert not torch.equal(drawn[0, 0], drawn[0, 1])
    assert draw_words(logits).shape == (2, 3, 1)


def test_rare_words_of_a_large_vocabulary_are_drawn() -> None:
    """A cumulative sum in half precision would lose them: 8,000 words share a tenth of the probability."""
    torch.manual_seed(3)
    probabilities = torch.cat([torch.tensor([0.9]), torch.full((8000,), 0.1 / 8000)])
    drawn = draw_words(probabilities.log(), 100_000)
    rare = drawn[drawn > 0]
    assert abs(len(rare) - 10_000) < 5 * (100_000 * 0.1 * 0.9) ** 0.5
    quarters = ((rare - 1) // 2000).bincount(minlength=4)
    assert chi_square(quarters, torch.full((4,), 0.25)) < 16.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("number", "outcome"), [(0.0, 1), (1.0, 3)])
def test_the_ends_of_the_random_numbers(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, number: float, outcome: int
) -> None:
    """The largest random number is the one below 1."""
    largest = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    monkeypatch.setattr(
        torch, "rand", lambda size, dtype, device: torch.full(size, number, dtype=dtype).clamp(max=largest)
    )
    for scale in (1.0, 3.7, 0.1):
        weights = torch.tensor([0.0, 0.4, 0.3, 0.3, 0.0], dtype=dtype) * scale
        assert draw(weights.cumsum(-1), 2).tolist() == [outcome, outcome]
