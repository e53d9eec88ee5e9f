"""The batched search with real decoders, against the two one-picture loops of the benchmark."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.beam_loops import cached_loop, textbook_loop
from captioner.decoder import DecoderConfig, build_decoder
from captioner.search import beam_search
from tests.evaluation.small import fill


def sharp_decoder(cell: str, attention: str, dtype: torch.dtype, sharpness: float = 12.0, end: float = 18.0, **shape: Any):
    config = DecoderConfig(cell, attention, 700, 12, 20, 9, feature_size=16, hidden_size=24, attention_size=16, **shape)
    decoder = build_decoder(config)
    fill(decoder, sharpness=sharpness, end=end)
    return decoder.eval().to(dtype)


def features(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, 9, 20, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(("cell", "attention"), [("gru", "soft"), ("lstm", "soft"), ("gru", "hard"), ("gru", "none"), ("lstm", "none")])
@pytest.mark.parametrize("beam", [1, 5])
def test_same_captions_as_one_picture_loops(cell, attention, beam):
    """700 words: the two-stage top-K is in use. float64: the same words, scores to rounding."""
    decoder, grids = sharp_decoder(cell, attention, torch.float64), features(30, torch.float64)
    ours = beam_search(decoder, grids, beam, max_length=15)
    for theirs in (cached_loop(decoder, grids, beam, 15), textbook_loop(decoder, grids, beam, 15)):
        assert [best.tokens for [best] in ours] == [tokens for tokens, _ in theirs]
        assert [best.score for [best] in ours] == pytest.approx([score for _, score in theirs], abs=1e-10)
    assert len({len(best.tokens) for [best] in ours}) > 1


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("beam", [1, 4])
def test_same_captions_with_two_layers_and_tied_weights(cell, beam):
    shape = {"layers": 2, "tie_weights": True, "norm": "batch"}
    decoder, grids = sharp_decoder(cell, "soft", torch.float64, sharpness=3.0, end=30.0, **shape), features(30, torch.float64)
    ours = beam_search(decoder, grids, beam, max_length=15)
    theirs = textbook_loop(decoder, grids, beam, 15)
    assert [best.tokens for [best] in ours] == [tokens for tokens, _ in theirs]
    assert [best.score for [best] in ours] == pytest.approx([score for _, score in theirs], abs=1e-10)
    assert len({len(best.tokens) for [best] in ours}) > 1 and len({best.tokens for [best] in ours}) > 10


def test_float32_differs_only_where_scores_are_near():
    decoder, grids = sharp_decoder("gru", "soft", torch.float32), features(60, torch.float32)
    ours = beam_search(decoder, grids, 5, max_length=15)
    theirs = cached_loop(decoder, grids, 5, 15)
    for [best], (tokens, score) in zip(ours, theirs, strict=True):
        assert best.tokens == tokens or abs(best.score - score) < 1e-4


def test_batch_composition_and_order_change_nothing():
    decoder, grids = sharp_decoder("lstm", "soft", torch.float64), features(24, torch.float64)
    alone = [beam_search(decoder, grids[[picture]], 4, max_length=15, keep=4)[0] for picture in range(24)]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    together = beam_search(decoder, grids[order], 4, max_length=15, keep=4)
    for picture, hypotheses in zip(order.tolist(), together, strict=True):
        assert [h.tokens for h in hypotheses] == [h.tokens for h in alone[picture]]
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in alone[picture]], abs=1e-11)


def test_attention_is_what_the_decoder_looked_at():
    """Replaying the caption word by word gives the same weights."""
    decoder, grids = sharp_decoder("gru", "soft", torch.float64), features(6, torch.float64)
    for picture, [best] in enumerate(beam_search(decoder, grids, 3, max_length=15, attention=True)):
        memory = decoder.encode(grids[[picture]])
        state, word = decoder.start(memory, 1), 1
        for token, weights in zip(best.tokens, best.attention, strict=True):
            _, state, expected = decoder.step(torch.tensor([[word]]), state, memory)
            assert torch.allclose(weights, expected[0, 0].detach().float(), atol=1e-6)
            word = token

