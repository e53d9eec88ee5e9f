"""Hard attention in training: where it looks, how often, and what is computed then."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captioner.decoder import CaptionDecoder
from captioner.decoder.attention import hard
from captioner.decoder.attention.hard import draw_positions
from tests.decoder.examples import POSITIONS, make_decoder, make_features, make_tokens
from tests.decoder.slow import slow_logits

LENGTHS = [[3, 5, 1, 4], [6, -1, 2, 2], [1, 0, -1, -1]]  # ragged, with missing captions and an empty one


def paths_of(positions: torch.Tensor, caption: torch.Tensor) -> dict[int, list[int]]:
    """Packed positions (M,) -> those of each caption, in order."""
    return {number: positions[caption == number].tolist() for number in caption.unique().tolist()}


@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_a_pass_is_the_equations_with_the_positions_it_drew(decoder: str) -> None:
    model, features, tokens = (
        make_decoder(decoder, "hard", tune_embeddings=True).train(),
        make_features(3),
        make_tokens(LENGTHS),
    )
    torch.manual_seed(5)
    hidden, weights, packing, positions = model.hidden(features, tokens)
    paths, found, expected_loss = paths_of(positions, packing.caption), model.vocabulary(hidden), 0.0
    assert positions.shape == (33,) and positions.max() < POSITIONS
    kinds = [{position >= 0 for position in path} for path in paths.values()]
    assert (
        all(len(kind) == 1 for kind in kinds) and len({kind.pop() for kind in kinds}) == 2
    )  # a caption draws throughout or never
    for number, path in paths.items():
        i, k = divmod(number, 4)
        caption = tokens[i, k][tokens[i, k] != 0]
        logits, alpha = slow_logits(model, features[i], caption, path)
        torch.testing.assert_close(found[packing.caption == number], logits, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(weights[packing.caption == number], alpha, rtol=1e-10, atol=1e-12)
        expected_loss = expected_loss + F.cross_entropy(logits, caption[1:], reduction="sum") + (alpha**3).sum()
    assert len(paths) == 9

    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(expected_loss, list(parameters.values()))
    (F.cross_entropy(found, packing.targets, reduction="sum") + (weights**3).sum()).backward()
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
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.full(size, number, dtype=options.get("dtype")))
    assert draw_positions(torch.tensor([[[0.0, 0.4, 0.6]]])).tolist() == [[position]]


def test_half_of_the_captions_take_the_expected_value_and_words_draw_anew() -> None:
    model, tokens = make_decoder("gru", "hard").train(), make_tokens([[4] * 5] * 400)
    features = make_features(1).expand(400, -1, -1)
    torch.manual_seed(2)
    _, weights, packing, positions = model.hidden(features, tokens)
    paths = torch.tensor(list(paths_of(positions, packing.caption).values()))  # (2000, 5)
    expected = (paths < 0).all(1)
    assert torch.equal(expected, (paths < 0).any(1)) and abs(expected.sum().item() - 1000) < 4 * 500**0.5
    drawn = paths[~expected]
    for step in range(
        5
    ):  # at the first step all are alike, later they differ by what was drawn before and by the words
        likely = weights[(packing.step == step) & (positions >= 0)]
        counts = drawn[:, step].bincount(minlength=POSITIONS)
        off = (counts - likely.sum(0)) / (likely * (1 - likely)).sum(0).sqrt()
        assert off.abs().max() < 4
    assert len(drawn.unique(dim=0)) > 300 and not (drawn[:, 0] == drawn[:, 1]).all()


def both(share: float, monkeypatch: pytest.MonkeyPatch) -> tuple[CaptionDecoder, CaptionDecoder]:
    """Hard and soft attention with the same weights."""
    monkeypatch.setattr(hard, "EXPECTED_SHARE", share)
    return make_decoder("lstm", "hard").train(), make_decoder("lstm", "soft")


def test_with_expected_values_alone_it_is_soft_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    features, tokens = make_features(3), make_tokens(LENGTHS)
    passes = [model.hidden(features, tokens) for model in both(1.0, monkeypatch)]
    assert (passes[0][3] == -1).all() and passes[1][3] is None
    assert torch.equal(passes[0][0], passes[1][0]) and torch.equal(passes[0][1], passes[1][1])


def test_the_generator_decides_and_eval_mode_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features, tokens = make_decoder("gru", "hard"), make_features(3), make_tokens(LENGTHS)
    state = torch.get_rng_state()
    assert torch.equal(model(features, tokens).logits, model(features, tokens).logits)
    assert torch.equal(torch.get_rng_state(), state) and model.hidden(features, tokens)[3] is None
    model.train()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(model(features, tokens).logits)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_under_autocast() -> None:
    """Weights and positions are of the decoder's own arithmetic: probabilities in bf16 would add up to something else
    than 1."""
    model, features, tokens = (
        make_decoder("gru", "hard").float().train(),
        make_features(3).float(),
        make_tokens(LENGTHS),
    )
    torch.manual_seed(0)
    exact = model.hidden(features, tokens)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.hidden(features, tokens)
    assert rounded[1].dtype == torch.float32 and torch.allclose(rounded[1].sum(1), torch.ones(33))
    assert torch.allclose(rounded[1], exact[1], atol=0.05)
    assert (rounded[3] == exact[3]).float().mean() > 0.8 and not torch.equal(rounded[1], exact[1])
