"""Search with real decoders, against loops over one image at a time and against greedy stepping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.beam_loops import cached_loop, textbook_loop
from captioner.decoder import DecoderConfig, build_decoder
from captioner.search import BeamStrategy, Constraints, DiverseStrategy, SamplingStrategy, beam_search, search
from captioner.vocabulary.vocabulary import END, PAD, START, UNK
from tests.search.real_decoders import random_features, sharp_decoder, stepped_log_probabilities


@pytest.mark.parametrize(
    ("cell", "attention"), [("gru", "soft"), ("lstm", "soft"), ("gru", "hard"), ("gru", "none"), ("lstm", "none")]
)
@pytest.mark.parametrize("beam", [1, 5])
def test_same_captions_as_loops_over_images(cell, attention, beam):
    """With 700 tokens the two-stage top-K is in use. In float64 tokens are the same, and scores to rounding."""
    decoder, features = sharp_decoder(cell, attention), random_features(30)
    ours = beam_search(decoder, features, beam, max_length=15)
    for theirs in (cached_loop(decoder, features, beam, 15), textbook_loop(decoder, features, beam, 15)):
        assert [best.tokens for [best] in ours] == [tokens for tokens, _ in theirs]
        assert [best.score for [best] in ours] == pytest.approx([score for _, score in theirs], abs=1e-10)
    assert len({len(best.tokens) for [best] in ours}) > 1


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("beam", [1, 4])
def test_same_captions_with_two_layers_and_tied_weights(cell, beam):
    decoder = sharp_decoder(cell, "soft", layers=2, tie_weights=True, norm="batch")
    features = random_features(30)
    ours = beam_search(decoder, features, beam, max_length=15)
    theirs = textbook_loop(decoder, features, beam, 15)
    assert [best.tokens for [best] in ours] == [tokens for tokens, _ in theirs]
    assert [best.score for [best] in ours] == pytest.approx([score for _, score in theirs], abs=1e-10)
    assert len({len(best.tokens) for [best] in ours}) > 1 and len({best.tokens for [best] in ours}) > 10


@torch.no_grad()
def test_beam_one_is_greedy_stepping():
    decoder, features = sharp_decoder("lstm", "soft"), random_features(10)
    for image, [best] in enumerate(beam_search(decoder, features, 1, max_length=15)):
        memory = decoder.encode(features[[image]])
        state, tokens = decoder.initial_state(memory, 1), [START]
        while tokens[-1] != END:
            logits, state, _ = decoder.step(torch.tensor([[tokens[-1]]]), state, memory)
            banned = [PAD, START, UNK] + [END] * (len(tokens) == 1)
            logits[..., banned] = -torch.inf
            tokens.append(int(logits.argmax()) if len(tokens) <= 15 else END)
        assert best.tokens == tuple(tokens[1:-1])


def test_float32_differs_only_where_scores_are_near():
    decoder, features = sharp_decoder("gru", "soft", torch.float32), random_features(60, torch.float32)
    ours = beam_search(decoder, features, 5, max_length=15)
    theirs = cached_loop(decoder, features, 5, 15)
    for [best], (tokens, score) in zip(ours, theirs, strict=True):
        assert best.tokens == tokens or abs(best.score - score) < 1e-4


def test_batch_composition_and_order_change_nothing():
    decoder, features = sharp_decoder("lstm", "soft"), random_features(24)
    alone = [beam_search(decoder, features[[image]], 4, max_length=15, keep=4)[0] for image in range(24)]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    together = beam_search(decoder, features[order], 4, max_length=15, keep=4)
    for image, hypotheses in zip(order.tolist(), together, strict=True):
        assert [h.tokens for h in hypotheses] == [h.tokens for h in alone[image]]
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in alone[image]], abs=1e-11)


@pytest.mark.parametrize("strategy", [BeamStrategy(4), DiverseStrategy(4, 2, 0.5), SamplingStrategy(4, range(24), 15)])
def test_fixed_shapes_change_nothing(strategy):
    decoder = sharp_decoder("gru", "soft")
    memory = decoder.encode(random_features(24))
    fixed, cut = (
        search(decoder, memory, 24, strategy, Constraints(15, 1), keep=4, fixed_shapes=flag) for flag in (True, False)
    )
    for ours, theirs in zip(fixed, cut, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-11)


@torch.no_grad()
def test_attention_is_that_of_the_steps():
    """Replaying the caption token by token gives the same weights."""
    decoder, features = sharp_decoder("gru", "soft"), random_features(6)
    for image, [best] in enumerate(beam_search(decoder, features, 3, max_length=15, attention=True)):
        memory = decoder.encode(features[[image]])
        state, last = decoder.initial_state(memory, 1), START
        for token, weights in zip(best.tokens, best.attention, strict=True):
            _, state, expected = decoder.step(torch.tensor([[last]]), state, memory)
            assert torch.allclose(weights, expected[0, 0].float(), atol=1e-6)
            last = token


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    """A decoder trained for a few steps on captions from a small grammar, and features of other images; float64."""
    torch.manual_seed(0)
    config = DecoderConfig(
        decoder="gru",
        attention="soft",
        vocabulary_size=24,
        embedding_size=8,
        channels=6,
        positions=4,
        feature_size=12,
        hidden_size=24,
        attention_size=12,
        dropout=0.0,
    )
    decoder = build_decoder(config).double().train()
    features, captions = grammar(64, seed=1)
    inputs = captions[..., :-1].masked_fill(captions[..., :-1] == END, PAD)
    targets = captions[..., 1:][inputs != PAD]
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(60):
        logits, _ = decoder(decoder.encode(features), inputs)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 2.0  # log 24 = 3.2 would mean that nothing has been learned
    return decoder.eval(), grammar(40, seed=2)[0]


def grammar(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features whose largest channel names the caption's first token, and captions START, tokens, END, PAD. Each next
    token is one of three that depend on the last one."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, 6, generator=generator, dtype=torch.float64)
    captions = torch.zeros(count, 3, 9, dtype=torch.int64)
    for image in range(count):
        for caption in range(3):
            tokens = [START, 4 + int(features[image].sum(0).argmax())]
            for _ in range(int(torch.randint(2, 6, (), generator=generator))):
                tokens.append(4 + (tokens[-1] * 3 + int(torch.randint(0, 3, (), generator=generator))) % 20)
            captions[image, caption, : len(tokens) + 1] = torch.tensor([*tokens, END])
    return features, captions


def test_a_trained_models_larger_beams_find_more_likely_captions(trained):
    decoder, features = trained

    def mean(size: int) -> float:
        found = beam_search(decoder, features, size, max_length=12, length_normalisation=0.0)
        return sum(best.log_probability for [best] in found) / len(found)

    assert mean(5) > mean(1) + 0.05


@torch.no_grad()
def test_every_strategy_runs_a_trained_model_and_ranks_by_the_models_probability(trained):
    """No caption beats the one of a beam that misses next to nothing. The log-probabilities are those of teacher
    forcing and of steps."""
    decoder, features = trained
    memory = decoder.encode(features)
    wide = beam_search(decoder, features, 60, max_length=8, length_normalisation=0.0)
    for strategy in (DiverseStrategy(6, 3, 0.5), SamplingStrategy(6, range(len(features)), 8, top_p=0.9)):
        found = search(decoder, memory, len(features), strategy, Constraints(8, 1), keep=6)
        for image, hypotheses in enumerate(found):
            assert hypotheses[0].log_probability <= wide[image][0].log_probability + 1e-9
            for hypothesis in hypotheses:
                inputs, targets = torch.tensor([START, *hypothesis.tokens]), torch.tensor([*hypothesis.tokens, END])
                logits, _ = decoder(decoder.encode(features[[image]]), inputs.view(1, 1, -1))
                expected = -torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
                assert hypothesis.log_probability == pytest.approx(float(expected), abs=1e-9)
            steps = stepped_log_probabilities(decoder, features[[image]], hypothesis.tokens)
            assert float(steps.gather(1, targets.unsqueeze(1)).sum()) == pytest.approx(float(expected), abs=1e-9)
