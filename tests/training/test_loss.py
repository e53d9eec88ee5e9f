"""The losses of tokens, the penalty of attention, clipping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captioner.batches import inputs_and_targets
from captioner.decoder import DecoderConfig, build_decoder
from captioner.parameters import TrainParameters
from captioner.teacher_forcing import token_cross_entropy
from captioner.training.data import GlobalBatch
from captioner.training.objectives import CrossEntropy, SelfCritical
from captioner.training.objectives.cross_entropy import attention_coverage
from captioner.training.optimizers import clip_gradients


@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_by_its_equation(factor: float, smoothing: float, weighted: bool) -> None:
    """Gradients are p - q, where q is the smoothed target; PAD has none."""
    torch.manual_seed(0)
    logits = torch.randn(9, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, 0, 7, 10, 1, 0, 2, 5, 5])
    weights = torch.randn(9, dtype=torch.float64) if weighted else torch.ones(9).double()  # an advantage may be < 0
    losses = token_cross_entropy(logits, targets, smoothing)
    wanted = (1 - smoothing) * F.one_hot(targets, 11).double() + smoothing / 11
    used = (targets != 0).double()
    expected = -(wanted * torch.log_softmax(logits.detach(), 1)).sum(1) * used
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-12, atol=0)
    (factor * (losses * weights).sum()).backward()
    slopes = (torch.softmax(logits.detach(), 1) - wanted) * (factor * weights * used).unsqueeze(1)
    torch.testing.assert_close(logits.grad, slopes, rtol=1e-12, atol=1e-14)


def test_cross_entropy_in_bf16_is_that_of_rounded_factors() -> None:
    """Products of numbers that bf16 holds exactly, small enough to add up exactly: the result is that of fp32, the
    slopes rounded."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 11)
    layer.weight.data, layer.bias.data = torch.randint(-2, 3, (11, 6)) / 4.0, torch.randint(-2, 3, (11,)) / 4.0
    hidden, targets = (torch.randint(-4, 5, (90, 6)) / 4.0).requires_grad_(), torch.randint(1, 11, (90,))
    expected = F.cross_entropy(layer(hidden), targets, reduction="none")
    expected_gradients = torch.autograd.grad(expected.mean(), [hidden, layer.weight, layer.bias])
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(hidden)
        entropies = token_cross_entropy(logits, targets)
    assert logits.dtype == torch.bfloat16 and entropies.dtype == torch.float32
    torch.testing.assert_close(entropies, expected)
    entropies.mean().backward()
    for one, two in zip((hidden.grad, layer.weight.grad, layer.bias.grad), expected_gradients):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=0, atol=2**-7 * float(two.abs().max()))


def objective(tuned: bool = True, **changes: object) -> tuple[CrossEntropy, torch.Tensor, torch.Tensor, GlobalBatch]:
    """An objective, features, tokens and their counts, in float64."""
    torch.manual_seed(0)
    config = DecoderConfig(
        "gru",
        "soft",
        12,
        3,
        6,
        4,
        vector_size=3,
        feature_size=5,
        hidden_size=6,
        attention_size=3,
        dropout=0.0,
        tie_weights=True,
        tune_embeddings=tuned,
    )
    decoder = build_decoder(config).double()
    tokens = torch.tensor([[[1, 9, 8, 7, 2], [1, 6, 2, 0, 0]], [[1, 5, 4, 2, 0], [0, 0, 0, 0, 0]]])
    counts = GlobalBatch(tokens=9, captions=3, images=2)
    return CrossEntropy(decoder, TrainParameters(**changes)), torch.randn(2, 4, 6).double(), tokens, counts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_weight_has_no_gradient_and_changes_no_other(precision: str) -> None:
    results = []
    for tuned in (True, False):
        loss_of, features, tokens, counts = objective(tuned)
        decoder = loss_of.decoder
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = loss_of(*loss_of.prepare(features, tokens, counts, 1, 0.0))
        loss.backward()
        assert (decoder.embedding.weight.grad is None) == (not tuned)
        others = {name: own.grad for name, own in decoder.named_parameters() if name != "embedding.weight"}
        assert all(gradient is not None and gradient.isfinite().all() for gradient in others.values())
        results.append([loss.detach(), *others.values()])
    assert len(results[0]) > 10 and all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("scale", [1, 3])
def test_the_loss_is_scaled_but_what_is_reported_is_not(scale: int) -> None:
    """DistributedDataParallel averages over ranks; label smoothing and the penalty are not reported."""
    plain, features, tokens, counts = objective()
    inputs, targets = inputs_and_targets(tokens)
    everywhere = torch.arange(targets.numel())
    logits, attention = plain.decoder(plain.decoder.encode(features), inputs, everywhere)
    each = F.cross_entropy(logits, targets.flatten(), ignore_index=0, reduction="none")
    smooth = F.cross_entropy(logits, targets.flatten(), ignore_index=0, reduction="sum", label_smoothing=0.2)
    total = (attention * (targets != 0).unsqueeze(-1)).sum(2)[[0, 0, 1], [0, 1, 0]]  # of the three captions
    penalty = ((1 - total) ** 2).sum()
    for options, expected in (
        ({}, each.sum() / 9),
        ({"label_smoothing": 0.2}, smooth / 9),
        ({"doubly_stochastic": 0.7}, each.sum() / 9 + 0.7 * penalty / 3),
    ):
        loss_of, *_ = objective(**options)
        tensors = loss_of.prepare(features, tokens, counts, scale, 0.0)
        loss, statistics = loss_of(*tensors)
        assert loss.item() == pytest.approx(scale * expected.item(), rel=1e-12)
        assert not statistics.requires_grad and loss_of.finish(statistics, counts)[1] == 9
        assert loss_of.finish(statistics, counts)[0].item() == pytest.approx(each.sum().item(), rel=1e-12)
        every, _ = loss_of(*tensors[:-1], everywhere)  # as on a GPU: all positions are computed, PAD counts nothing
        assert every.item() == pytest.approx(loss.item(), rel=1e-12)


def test_cross_entropy_of_extreme_logits() -> None:
    """A wrong word that is certain costs its margin, and the gradient is that of the softmax."""
    logits = torch.tensor([[0.0, 500.0, -500.0]], requires_grad=True)
    loss = token_cross_entropy(logits, torch.tensor([2])).sum()
    assert loss.item() == pytest.approx(1000)
    loss.backward()
    assert logits.grad.tolist() == [[0, 1, -1]]


def test_words_that_are_never_drawn_are_as_if_they_were_not_in_the_vocabulary() -> None:
    """In self-critical training: PAD, START and UNK."""
    plain, features, tokens, counts = objective()
    decoder, kept = plain.decoder, [2, *range(4, 12)]
    train = SelfCritical(decoder, TrainParameters(scst_samples=2), lambda *_: np.zeros(0), 9)
    inputs, targets = inputs_and_targets(tokens)
    advantages, rewards = torch.tensor([[0.5, -2.0], [1.5, 3.0]]).double(), torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    index = targets.flatten().nonzero().squeeze(1)
    logits, _ = decoder(decoder.encode(features), inputs, index)
    chosen = torch.tensor([kept.index(int(word)) for word in targets.flatten()[index]])  # of a smaller vocabulary
    each = F.cross_entropy(logits[:, kept], chosen, reduction="none")
    weights = torch.tensor([0.5] * 4 + [-2.0] * 2 + [1.5] * 3).double()
    names = [name for name, own in decoder.named_parameters()]
    expected = torch.autograd.grad((each * weights).sum() * 0.25, list(decoder.parameters()))
    for positions in (index, torch.arange(targets.numel())):
        decoder.zero_grad()
        scale = torch.tensor(0.25).double()
        loss, statistics = train(features, inputs, targets, advantages, rewards, scale, positions)
        assert loss.item() == pytest.approx((each * weights).sum().item() * 0.25, rel=1e-12)
        assert statistics.item() == 10
        loss.backward()
        for name, own, gradient in zip(names, decoder.parameters(), expected):
            torch.testing.assert_close(own.grad, gradient, rtol=0, atol=1e-12, msg=name)
        assert not decoder.tied_bias.grad[[0, 1, 3]].any() and decoder.tied_bias.grad.isfinite().all()


def test_loss_that_is_not_finite_stays_visible() -> None:
    logits = torch.zeros(2, 3)
    logits[1, 0] = math.nan
    losses = token_cross_entropy(logits, torch.tensor([1, 2]))
    assert losses[0].isfinite() and losses[1].isnan()


def test_doubly_stochastic_penalty_by_hand() -> None:
    """Captions of 2, 1 and 2 tokens, and one that is missing; weights at PAD have no part."""
    mask = torch.tensor([[[True, True], [True, False]], [[False, False], [True, True]]])
    attention = torch.tensor(
        [
            [[[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.9, 0.1]]],
            [[[0.3, 0.7], [0.6, 0.4]], [[0.0, 1.0], [0.0, 1.0]]],
        ]
    )
    expected = (0.5**2 + 0.5**2) + (0.75**2 + 0.25**2) + (1 + 1)
    assert attention_coverage(attention, mask).item() == pytest.approx(expected)


def test_clipping_scales_all_gradients_to_the_largest_norm() -> None:
    parameters = [
        torch.zeros(2, requires_grad=True),
        torch.zeros(1, requires_grad=True),
        torch.zeros(1, requires_grad=True),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    clip_gradients(parameters, 10.0)
    assert parameters[0].grad.tolist() == [3, 0] and parameters[1].grad.tolist() == [4]
    clip_gradients(parameters, 2.5)
    assert parameters[0].grad.tolist() == pytest.approx([1.5, 0]) and parameters[1].grad.tolist() == pytest.approx(
        [2.0]
    )
