"""Hard attention in training: where it looks, how often, and what is computed then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.decoder.attention import HardAttention, hard
from captioner.decoder.attention.hard import draw_positions
from captioner.decoder.recurrent import RecurrentDecoder
from tests.decoder.comparing import assert_same, by_caption, gradients, teacher_forced
from tests.decoder.examples import POSITIONS, make_decoder, make_features, make_tokens
from tests.decoder.slow import slow_logits

LENGTHS = [[3, 5, 1, 4], [6, -1, 2, 2], [1, 0, -1, -1]]  # ragged, with missing captions and an empty one


def drawn_positions(model: RecurrentDecoder) -> Tensor:
    """Of the last pass of teacher forcing, (I, K, T)."""
    assert isinstance(model.attention, HardAttention)
    return model.attention.drawn_positions()


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_a_pass_is_the_equations_with_the_positions_it_drew(decoder: str) -> None:
    model, features = make_decoder(decoder, "hard", tune_embeddings=True).train(), make_features(3)
    tokens = make_tokens(LENGTHS)
    torch.manual_seed(5)
    outputs = teacher_forced(model, features, tokens)
    positions, found = drawn_positions(model), by_caption(outputs)
    assert positions.shape == outputs.mask.shape and positions.max() < POSITIONS
    kinds = [{position >= 0 for position in path} for path in positions.flatten(0, 1).tolist()]
    assert all(len(kind) == 1 for kind in kinds)  # a caption draws throughout or never
    assert len({kind.pop() for kind in kinds}) == 2
    assert len(found) == 9
    expected_loss = torch.zeros((), dtype=torch.float64)
    for (i, k), logits in found.items():
        caption = tokens[i, k][tokens[i, k] != 0]
        path = positions[i, k, : len(logits)].tolist()
        expected, alpha = slow_logits(model, features[i], caption, path)
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(outputs.attention[i, k, : len(logits)], alpha, rtol=1e-10, atol=1e-12)
        expected_loss = expected_loss + F.cross_entropy(expected, caption[1:], reduction="sum") + (alpha**3).sum()
    loss = F.cross_entropy(outputs.logits, outputs.targets, reduction="sum") + (outputs.weights**3).sum()
    assert_same(gradients(model, loss), gradients(model, expected_loss))


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
        ).sum() < 20.5  # chi-square with 5 degrees of freedom exceeds it once in 1,000, with 2 less often


@pytest.mark.parametrize(("number", "position"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_the_random_numbers(monkeypatch: pytest.MonkeyPatch, number: float, position: int) -> None:
    monkeypatch.setattr(torch, "rand", lambda size, dtype, device: torch.full(size, number, dtype=dtype))
    assert draw_positions(torch.tensor([[[0.0, 0.4, 0.6]]])).tolist() == [[position]]


def test_half_of_the_captions_take_the_expected_value_and_words_draw_anew() -> None:
    model, tokens = make_decoder("gru", "hard").train(), make_tokens([[4] * 5] * 400)
    features = make_features(1).expand(400, -1, -1)
    torch.manual_seed(2)
    outputs = teacher_forced(model, features, tokens)
    paths = drawn_positions(model).flatten(0, 1)  # (2000, 5)
    expected = (paths < 0).all(1)
    assert torch.equal(expected, (paths < 0).any(1)) and abs(expected.sum().item() - 1000) < 4 * 500**0.5
    drawn = paths[~expected]
    # at the first step all are alike, later they differ by what was drawn before and by the words
    for step in range(5):
        likely = outputs.attention.flatten(0, 1)[~expected, step]
        counts = drawn[:, step].bincount(minlength=POSITIONS)
        off = (counts - likely.sum(0)) / (likely * (1 - likely)).sum(0).sqrt()
        assert off.abs().max() < 4
    assert len(drawn.unique(dim=0)) > 300 and not (drawn[:, 0] == drawn[:, 1]).all()
    torch.manual_seed(2)
    teacher_forced(model, features, tokens)
    assert torch.equal(drawn_positions(model).flatten(0, 1), paths)
    teacher_forced(model, features, tokens)  # the next pass draws other captions too
    assert not torch.equal((drawn_positions(model).flatten(0, 1) < 0).all(1), expected)


def test_with_expected_values_alone_it_is_soft_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard, "EXPECTED_SHARE", 1.0)
    model, other = make_decoder("lstm", "hard").train(), make_decoder("lstm", "soft")
    features, tokens = make_features(3), make_tokens(LENGTHS)
    found, expected = teacher_forced(model, features, tokens), teacher_forced(other, features, tokens)
    assert (drawn_positions(model) == -1).all()
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.attention, expected.attention)


def test_no_gradient_goes_through_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all positions are drawn the parameters of alpha have a gradient by REINFORCE alone."""
    monkeypatch.setattr(hard, "EXPECTED_SHARE", 0.0)
    model = make_decoder("lstm", "hard").train()
    outputs = teacher_forced(model, make_features(3), make_tokens(LENGTHS))
    assert (drawn_positions(model) >= 0).all()
    assert gradients(model, outputs.weights.square().sum())["attention.key.weight"].any()
    outputs = teacher_forced(model, make_features(3), make_tokens(LENGTHS))
    found = gradients(model, outputs.logits.square().sum())
    assert len(found) > 10 and all(gradient.any() != name.startswith("attention.") for name, gradient in found.items())


def test_the_generator_decides_and_eval_mode_draws_nothing() -> None:
    model, features, tokens = make_decoder("gru", "hard"), make_features(3), make_tokens(LENGTHS)

    def logits() -> Tensor:
        return teacher_forced(model, features, tokens).logits

    state = torch.get_rng_state()
    assert torch.equal(logits(), logits())
    assert torch.equal(torch.get_rng_state(), state) and not model.attention.drawn
    model.train()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(logits())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_steps_in_eval_mode_after_training_look_at_the_likeliest_position() -> None:
    """What a pass of training drew is forgotten."""
    model, features, tokens = make_decoder("gru", "hard"), make_features(3), make_tokens(LENGTHS)
    expected = teacher_forced(model, features, tokens).logits
    teacher_forced(model.train(), features, tokens)
    model.eval()
    memory = model.encode(features)
    logits, _, _ = model.step(tokens[:, :, 0], model.initial_state(memory, 4), memory)
    torch.testing.assert_close(logits[0, 0], expected[0])
    assert torch.equal(teacher_forced(model, features, tokens).logits, expected)


def test_under_autocast() -> None:
    """Probabilities are fp32: in bf16 they would add up to something else than 1."""
    model, features = make_decoder("gru", "hard").float().train(), make_features(3).float()
    tokens = make_tokens(LENGTHS)
    torch.manual_seed(0)
    exact = teacher_forced(model, features, tokens)
    positions = drawn_positions(model)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher_forced(model, features, tokens)
    weights = rounded.weights
    assert weights.dtype == torch.float32 and torch.allclose(weights.sum(1), torch.ones(33))
    assert torch.allclose(weights, exact.weights, atol=0.05) and not torch.equal(weights, exact.weights)
    same = drawn_positions(model)[rounded.mask] == positions[exact.mask]
    assert same.float().mean() > 0.8
