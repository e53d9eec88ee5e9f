"""Hard attention in training: where it looks, how often, and what is computed then."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captioner.decoder import Decoder
from captioner.decoder.attention import hard
from captioner.decoder.attention.hard import draw_positions
from tests.decoder.comparing import Outputs, by_caption, teacher_forced
from tests.decoder.examples import POSITIONS, make_decoder, make_features, make_tokens
from tests.decoder.slow import slow_logits

LENGTHS = [[3, 5, 1, 4], [6, -1, 2, 2], [1, 0, -1, -1]]  # ragged, with missing captions and an empty one


def pass_of(model: Decoder, features: torch.Tensor, tokens: torch.Tensor) -> tuple[Outputs, torch.Tensor]:
    """Teacher forcing, and the positions drawn (I, K, T)."""
    outputs = teacher_forced(model, features, tokens)
    return outputs, model.attention.drawn_positions()


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_a_pass_is_the_equations_with_the_positions_it_drew(decoder: str) -> None:
    model = make_decoder(decoder, "hard", tune_embeddings=True).train()
    features, tokens = make_features(3), make_tokens(LENGTHS)
    torch.manual_seed(5)
    outputs, positions = pass_of(model, features, tokens)
    found, expected_loss, loss = by_caption(outputs.logits, tokens), 0.0, 0.0
    assert positions.shape == (3, 4, 7) and positions.max() < POSITIONS and len(outputs.logits) == 33
    lengths = (tokens[..., 1:] != 0).sum(-1).flatten().tolist()
    paths = [path[:length] for path, length in zip(positions.flatten(0, 1).tolist(), lengths) if length]
    kinds = [{position >= 0 for position in path} for path in paths]
    # a caption draws at every step or never
    assert all(len(kind) == 1 for kind in kinds) and len({kind.pop() for kind in kinds}) == 2
    for (i, k), rows in found.items():
        caption = tokens[i, k][tokens[i, k] != 0]
        logits, alpha = slow_logits(model, features[i], caption, positions[i, k].tolist())
        weights = outputs.attention[i, k, : len(alpha)]
        torch.testing.assert_close(rows, logits, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(weights, alpha, rtol=1e-10, atol=1e-12)
        expected_loss = expected_loss + F.cross_entropy(logits, caption[1:], reduction="sum") + (alpha**3).sum()
        loss = loss + (weights**3).sum()
    assert len(found) == 9

    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(expected_loss, list(parameters.values()))
    (F.cross_entropy(outputs.logits, outputs.targets, reduction="sum") + loss).backward()
    for (name, parameter), gradient in zip(parameters.items(), expected):
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_positions_are_drawn_as_often_as_they_are_likely() -> None:
    likely = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.04, 0.01], [0.0, 0.3, 0.0, 0.3, 0.4, 0.0]])
    samples = 50_000
    torch.manual_seed(1)
    drawn = draw_positions(likely.unsqueeze(1).expand(2, samples, 6).contiguous())
    assert drawn.shape == (2, samples) and drawn.dtype == torch.int64
    for row, probabilities in zip(drawn, likely):
        counts = row.bincount(minlength=6)
        assert not counts[probabilities == 0].any()
        some = probabilities > 0
        expected = samples * probabilities[some]
        assert (
            (counts[some] - expected) ** 2 / expected
        ).sum() < 20.5  # chi-square with 5 degrees of freedom passes it once in 1,000, with 2 less often


@pytest.mark.parametrize(("number", "position"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_the_random_numbers(monkeypatch: pytest.MonkeyPatch, number: float, position: int) -> None:
    monkeypatch.setattr(torch, "rand", lambda size, **options: torch.full(size, number, dtype=options["dtype"]))
    assert draw_positions(torch.tensor([[[0.0, 0.4, 0.6]]])).tolist() == [[position]]


def test_half_of_the_captions_take_the_expected_value_and_every_word_draws_anew() -> None:
    model, tokens = make_decoder("gru", "hard").train(), make_tokens([[4] * 5] * 400)
    features = make_features(1).expand(400, -1, -1)
    torch.manual_seed(2)
    outputs, positions = pass_of(model, features, tokens)
    paths, weights = positions.flatten(0, 1), outputs.attention.flatten(0, 1)  # (2000, 5), (2000, 5, P)
    expected = (paths < 0).all(1)
    assert torch.equal(expected, (paths < 0).any(1)) and abs(expected.sum().item() - 1000) < 4 * 500**0.5
    drawn, likely = paths[~expected], weights[~expected]
    # at the first step all are alike, later they differ by what was drawn before and by the words
    for step in range(5):
        counts = drawn[:, step].bincount(minlength=POSITIONS)
        off = (counts - likely[:, step].sum(0)) / (likely[:, step] * (1 - likely[:, step])).sum(0).sqrt()
        assert off.abs().max() < 4
    assert len(drawn.unique(dim=0)) > 300 and not (drawn[:, 0] == drawn[:, 1]).all()


def both(share: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Decoder, Decoder]:
    """Hard and soft attention with the same weights."""
    monkeypatch.setattr(hard, "EXPECTED_SHARE", share)
    return make_decoder("lstm", "hard").train(), make_decoder("lstm", "soft")


def test_with_expected_values_alone_it_is_soft_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    features, tokens = make_features(3), make_tokens(LENGTHS)
    hard_model, soft_model = both(1.0, monkeypatch)
    found, positions = pass_of(hard_model, features, tokens)
    expected = teacher_forced(soft_model, features, tokens)
    assert (positions == -1).all()
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.attention, expected.attention)


def test_the_generator_decides_and_eval_mode_draws_nothing() -> None:
    model, features, tokens = make_decoder("gru", "hard"), make_features(3), make_tokens(LENGTHS)
    state = torch.get_rng_state()
    first, second = (teacher_forced(model, features, tokens).logits for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state) and not model.attention.drawn
    model.train()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(teacher_forced(model, features, tokens).logits)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_steps_in_eval_mode_after_a_training_pass_take_the_most_probable_position() -> None:
    model, features, tokens = make_decoder("gru", "hard"), make_features(3), make_tokens([[3], [2], [4]])
    expected = teacher_forced(model, features, tokens).logits
    teacher_forced(model.train(), features, tokens)
    model.eval()
    assert torch.equal(teacher_forced(model, features, tokens).logits, expected)
    model.train()
    teacher_forced(model, features, tokens)
    memory = model.eval().encode(features)
    logits, _, _ = model.step(tokens[:, :, 0], model.initial_state(memory, 1), memory)
    torch.testing.assert_close(logits[0, 0], expected[0])


def test_under_autocast() -> None:
    """Weights are fp32: probabilities in bf16 would add up to something else than 1."""
    model, features, tokens = (
        make_decoder("gru", "hard").float().train(),
        make_features(3).float(),
        make_tokens(LENGTHS),
    )
    torch.manual_seed(0)
    exact, positions = pass_of(model, features, tokens)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, others = pass_of(model, features, tokens)
    weights = rounded.attention
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.sum(-1)[tokens[..., 1:] != 0], torch.ones(()))
    assert torch.allclose(weights, exact.attention, atol=0.05)
    assert (others == positions).float().mean() > 0.8 and not torch.equal(weights, exact.attention)
