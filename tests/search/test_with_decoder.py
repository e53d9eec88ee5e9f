"""The batched search with real decoders, against the two one-picture loops of the benchmark."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.beam_loops import cached_loop, textbook_loop
from captioner.decoder import DecoderConfig, build_decoder
from captioner.search import Constraints, DiverseStrategy, SamplingStrategy, beam_search, search
from tests.evaluation.small import fill


def sharp_decoder(
    cell: str, attention: str, dtype: torch.dtype, sharpness: float = 12.0, end: float = 18.0, **shape: Any
):
    config = DecoderConfig(cell, attention, 700, 12, 20, 9, feature_size=16, hidden_size=24, attention_size=16, **shape)
    decoder = build_decoder(config)
    fill(decoder, sharpness=sharpness, end=end)
    return decoder.eval().to(dtype)


def features(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, 9, 20, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(
    ("cell", "attention"), [("gru", "soft"), ("lstm", "soft"), ("gru", "hard"), ("gru", "none"), ("lstm", "none")]
)
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
    decoder, grids = (
        sharp_decoder(cell, "soft", torch.float64, sharpness=3.0, end=30.0, **shape),
        features(30, torch.float64),
    )
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


@pytest.fixture(scope="module")
def trained():
    """A decoder trained for a moment on captions drawn from a small grammar, and pictures that it has not seen;
    float64."""
    torch.manual_seed(0)
    config = DecoderConfig("gru", "soft", 24, 8, 6, 4, feature_size=12, hidden_size=24, attention_size=12, dropout=0.0)
    decoder = build_decoder(config).double().train()
    grids, captions = grammar(64, seed=1)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(60):
        outputs = decoder(grids, captions)
        loss = torch.nn.functional.cross_entropy(outputs.logits, outputs.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 2.0  # log 24 = 3.2 says nothing has been learned
    return decoder.eval(), grammar(40, seed=2)[0]


def grammar(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose largest channel names the caption's first word; each next word is one of three after the last
    one."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.randn(count, 4, 6, generator=generator, dtype=torch.float64)
    captions = torch.zeros(count, 3, 9, dtype=torch.int64)
    for picture in range(count):
        for caption in range(3):
            words = [1, 4 + int(grids[picture].sum(0).argmax())]
            for _ in range(int(torch.randint(2, 6, (), generator=generator))):
                words.append(4 + (words[-1] * 3 + int(torch.randint(0, 3, (), generator=generator))) % 20)
            captions[picture, caption, : len(words) + 1] = torch.tensor([*words, 2])
    return grids, captions


def test_a_trained_models_larger_beams_find_likelier_captions(trained):
    decoder, grids = trained
    mean = {
        size: sum(
            best.log_probability
            for [best] in beam_search(decoder, grids, size, max_length=12, length_normalisation=0.0)
        )
        / len(grids)
        for size in (1, 5)
    }
    assert mean[5] >= mean[1]
    assert mean[5] > mean[1] + 0.05  # and not because they are all the same


def test_every_strategy_runs_a_trained_model_and_ranks_by_the_models_probability(trained):
    """No caption of theirs outdoes the one of a beam that misses next to nothing; the log-probabilities are teacher
    forcing's."""
    decoder, grids = trained
    memory = decoder.encode(grids)
    wide = beam_search(decoder, grids, 60, max_length=8, length_normalisation=0.0)
    for strategy in (DiverseStrategy(6, 3, 0.5), SamplingStrategy(6, range(len(grids)), 8, top_p=0.9)):
        found = search(decoder, memory, len(grids), strategy, Constraints(8, 1), keep=6)
        for picture, hypotheses in enumerate(found):
            assert hypotheses[0].log_probability <= wide[picture][0].log_probability + 1e-9
            for hypothesis in hypotheses:
                tokens = torch.tensor([[[1, *hypothesis.tokens, 2]]])
                outputs = decoder(grids[[picture]], tokens)
                expected = -torch.nn.functional.cross_entropy(outputs.logits, outputs.targets, reduction="sum")
                assert hypothesis.log_probability == pytest.approx(float(expected.detach()), abs=1e-9)
