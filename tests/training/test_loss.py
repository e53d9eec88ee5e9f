"""Loss and update."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captioner.decoder.packing import Packing
from captioner.training.loss import attention_coverage
from captioner.training.step import clip_gradients
from captioner.training.vocabulary_loss import vocabulary_loss
from tests.decoder.examples import make_tokens


@pytest.mark.parametrize("block_bytes", [1, 700, 1 << 20])
@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_vocabulary_loss_is_layer_and_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, factor: float, smoothing: float, weighted: bool
) -> None:
    monkeypatch.setattr("captioner.training.vocabulary_loss._BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    layer = nn.Linear(6, 11).double()
    hidden, targets = torch.randn(9, 6, dtype=torch.float64, requires_grad=True), torch.randint(11, (9,))
    weights = torch.randn(9, dtype=torch.float64) if weighted else None  # an advantage may be negative
    logits = layer(hidden)
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    expected = (each if weights is None else each * weights).sum()
    expected_gradients = torch.autograd.grad(
        factor * expected / 9, [hidden, layer.weight, layer.bias], retain_graph=True
    )
    loss, entropies = vocabulary_loss(layer, hidden, targets, 1 / 9, weights, smoothing)
    torch.testing.assert_close(loss, expected / 9)
    torch.testing.assert_close(entropies, F.cross_entropy(logits, targets, reduction="none").detach())
    assert not entropies.requires_grad
    (factor * loss).backward()
    for one, two in zip((hidden.grad, layer.weight.grad, layer.bias.grad), expected_gradients):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("block_bytes", [700, 1 << 20])
def test_vocabulary_loss_in_bf16_is_that_of_rounded_factors(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    """Products of numbers that bf16 holds exactly, small enough to add up exactly: the result is that of fp32, the
    slopes rounded."""
    monkeypatch.setattr("captioner.training.vocabulary_loss._BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    layer = nn.Linear(6, 11)
    layer.weight.data, layer.bias.data = torch.randint(-2, 3, (11, 6)) / 4.0, torch.randint(-2, 3, (11,)) / 4.0
    hidden, targets = (torch.randint(-4, 5, (90, 6)) / 4.0).requires_grad_(), torch.randint(11, (90,))
    expected = F.cross_entropy(layer(hidden), targets, reduction="none")
    expected_gradients = torch.autograd.grad(expected.mean(), [hidden, layer.weight, layer.bias])
    with torch.autocast("cpu", torch.bfloat16):
        loss, entropies = vocabulary_loss(layer, hidden, targets, 1 / 90)
    torch.testing.assert_close(entropies, expected.detach())
    assert loss.dtype == torch.float32
    loss.backward()
    for one, two in zip((hidden.grad, layer.weight.grad, layer.bias.grad), expected_gradients):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=0, atol=2**-7 * float(two.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("block_bytes", [100, 1 << 20])
def test_a_frozen_weight_costs_no_gradient(monkeypatch: pytest.MonkeyPatch, block_bytes: int, precision: str) -> None:
    monkeypatch.setattr("captioner.training.vocabulary_loss._BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    layer, targets = nn.Linear(6, 11), torch.randint(11, (9,))
    results = []
    for tuned in (True, False):
        layer.zero_grad()
        layer.weight.requires_grad_(tuned)
        hidden = torch.randn(9, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = vocabulary_loss(layer, hidden, targets, 1 / 9)
        assert (loss.grad_fn.saved_tensors[1] is None) == (not tuned)
        (2 * loss).backward()
        results.append((loss, hidden.grad, layer.bias.grad))
        assert (layer.weight.grad is None) == (not tuned)
    assert all(torch.equal(one, two) for one, two in zip(*results))


def test_vocabulary_loss_of_extreme_logits() -> None:
    """A wrong word that is certain costs its margin, and the gradient is that of the softmax."""
    layer = nn.Linear(1, 3)
    layer.weight.data, layer.bias.data = torch.tensor([[0.0], [500.0], [-500.0]]), torch.zeros(3)
    loss, _ = vocabulary_loss(layer, torch.ones(1, 1), torch.tensor([2]), 1.0)
    assert loss.item() == pytest.approx(1000)
    loss.backward()
    assert layer.bias.grad.tolist() == [0, 1, -1]


@pytest.mark.parametrize("block_bytes", [500, 1 << 20])
def test_banned_words_are_as_if_they_were_not_in_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr("captioner.training.vocabulary_loss._BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    layer = nn.Linear(6, 11).double()
    hidden, targets = torch.randn(9, 6, dtype=torch.float64, requires_grad=True), torch.randint(4, 11, (9,))
    weights, kept = torch.randn(9, dtype=torch.float64), [1, *range(4, 11)]
    logits = layer(hidden)[:, kept]  # a smaller layer; its words are counted anew
    each = F.cross_entropy(logits, targets - 3, reduction="none")
    expected = torch.autograd.grad((each * weights).sum() / 9, [hidden, layer.weight, layer.bias])
    loss, entropies = vocabulary_loss(layer, hidden, targets, 1 / 9, weights, banned=(0, 2, 3))
    torch.testing.assert_close(entropies, each.detach())
    torch.testing.assert_close(loss, (each * weights).sum() / 9)
    loss.backward()
    for one, two in zip((hidden.grad, layer.weight.grad, layer.bias.grad), expected):
        torch.testing.assert_close(one, two)
    assert not layer.bias.grad[[0, 2, 3]].any() and layer.bias.isfinite().all()


def test_loss_that_is_not_finite_stays_visible() -> None:
    layer = nn.Linear(2, 3)
    layer.weight.data[0, 0] = math.nan
    assert math.isnan(vocabulary_loss(layer, torch.ones(1, 2), torch.tensor([0]), 1.0)[0].item())


def test_doubly_stochastic_penalty_by_hand() -> None:
    tokens = make_tokens([[1, 0], [-1, 1]])  # captions of 2, 1 and 2 targets
    packing = Packing.of(tokens, torch.device("cpu"))
    weights = torch.zeros(5, 2)
    per_caption = {0: [[0.5, 0.5], [1.0, 0.0]], 1: [[0.25, 0.75]], 3: [[0.0, 1.0], [0.0, 1.0]]}
    for row, (caption, step) in enumerate(zip(packing.caption.tolist(), packing.step.tolist())):
        weights[row] = torch.tensor(per_caption[caption][step])
    expected = (0.5**2 + 0.5**2) + (0.75**2 + 0.25**2) + (1 + 1)
    assert attention_coverage(weights, packing).item() == pytest.approx(expected)


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
