"""The pieces of the decoder against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from captioner.decoder.attention.additive import _TanhScores
from captioner.decoder.cells import build_cell
from captioner.decoder.deferred import DeferredLinear
from captioner.decoder.dropout import Dropout
from captioner.decoder.packing import Packing


@pytest.mark.parametrize(("name", "reference"), [("gru", nn.GRUCell), ("lstm", nn.LSTMCell)])
def test_cell_is_torchs_cell(name: str, reference: type) -> None:
    torch.manual_seed(0)
    cell, other = build_cell(name), reference(4, 6).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    state = [torch.randn(3, 6, dtype=torch.float64) for _ in range(cell.states)]
    inputs, hidden = x @ other.weight_ih.T + other.bias_ih, state[0] @ other.weight_hh.T + other.bias_hh
    if name == "lstm":  # torch's column blocks are i, f, g, o; ours i, f, o, g
        inputs, hidden = (torch.cat([part[:, :12], part[:, 18:], part[:, 12:18]], 1) for part in (inputs, hidden))
    found = cell.combine(inputs, hidden, state)
    expected = other(x, tuple(state) if name == "lstm" else state[0])
    for one, two in zip(found, expected if name == "lstm" else (expected,), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_cell_gradients(name: str) -> None:
    torch.manual_seed(0)
    cell = build_cell(name)
    sizes = [cell.gates * 4, cell.gates * 4, *[4] * cell.states]
    inputs = [torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(lambda x, h, *state: cell.combine(x, h, state), inputs)


def test_scores_and_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, keys, score = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in [(3, 2, 5), (3, 4, 5), (5,)]
    )
    expected = torch.tanh(keys[:, None] + query[:, :, None]) @ score
    torch.testing.assert_close(_TanhScores.apply(query, keys, score), expected)
    assert torch.autograd.gradcheck(_TanhScores.apply, (query, keys, score))
    monkeypatch.setattr("captioner.decoder.attention.additive._CACHE_BYTES", 1)  # one picture at a time
    torch.testing.assert_close(_TanhScores.apply(query, keys, score), expected)
    assert torch.autograd.gradcheck(_TanhScores.apply, (query, keys, score))


@pytest.mark.parametrize("bias", [True, False])
def test_deferred_linear_is_a_linear_layer(bias: bool) -> None:
    torch.manual_seed(0)
    weight, x = (
        torch.randn(6, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(7, 3, dtype=torch.float64, requires_grad=True),
    )
    base = torch.randn(*((6,) if bias else (7, 6)), dtype=torch.float64, requires_grad=True)
    factor = torch.randn(7, 6, dtype=torch.float64)

    layer = DeferredLinear(weight, base if bias else base.clone(), 7, (2, 4))
    found = torch.cat([torch.cat(layer(rows), 1) for rows in x.split([3, 3, 1])])
    expected = x @ weight.T + base
    torch.testing.assert_close(found, expected)
    expected_gradients = torch.autograd.grad((expected.tanh() * factor).sum(), [weight, x, base])
    (found.tanh() * factor).sum().backward()
    for one, two in zip((weight.grad, x.grad, base.grad), expected_gradients):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("bias", [True, False])
def test_deferred_linear_under_autocast(bias: bool) -> None:
    """Numbers that bf16 holds exactly: the products are exact, and what comes out has the weight's dtype."""
    torch.manual_seed(0)
    weight, x = ((torch.randint(-4, 5, shape) / 4.0).requires_grad_() for shape in ((6, 3), (7, 3)))
    base = torch.randint(-4, 5, (6,) if bias else (7, 6)).float().requires_grad_()
    factor = torch.randint(-2, 3, (7, 6)).float()
    with torch.autocast("cpu", torch.bfloat16):
        layer = DeferredLinear(weight, base if bias else base.clone(), 7, (2, 4))
    found = torch.cat([torch.cat(layer(rows), 1) for rows in x.split([3, 3, 1])])
    expected = x @ weight.T + base
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    expected_gradients = torch.autograd.grad((expected * factor).sum(), [weight, x, base])
    (found * factor).sum().backward()
    for one, two in zip((weight.grad, x.grad, base.grad), expected_gradients):
        assert one.dtype == torch.float32 and torch.equal(one, two)


def test_dropout_drops_the_given_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = Dropout(0.25)
    dropped = layer(torch.ones(1000, 1001))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    count = dropped.numel()
    assert abs((dropped == 0).sum().item() - 0.25 * count) < 5 * (count * 0.25 * 0.75) ** 0.5
    columns = (dropped == 0).float().mean(0)
    assert abs(columns - 0.25).max() < 6 * (0.25 * 0.75 / 1000) ** 0.5  # every place, not only on average
    assert layer.eval()(torch.ones(3)).tolist() == [1, 1, 1]
    assert Dropout(0.0)(torch.ones(3)).tolist() == [1, 1, 1]


def test_dropout_gradient_is_its_mask() -> None:
    x = torch.ones(50, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


@pytest.mark.parametrize("seed", range(60))
def test_packing_holds_every_token_once(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(-1, generator.integers(0, 8), (generator.integers(1, 6), 3)).tolist()  # -1: no caption
    tokens = torch.zeros(len(lengths), 3, 9, dtype=torch.int64)
    for i, row in enumerate(lengths):
        for k, length in enumerate(row):
            if length >= 0:
                tokens[i, k, : length + 2] = torch.arange(1, length + 3) + 10 * (3 * i + k)
    if max(map(max, lengths)) < 0:
        with pytest.raises(ValueError):
            Packing.of(tokens, torch.device("cpu"))
        return
    packing = Packing.of(tokens, torch.device("cpu"))
    assert torch.equal(packing.targets, packing.inputs + 1)
    flat = tokens.flatten(0, 1)
    assert torch.equal(flat[packing.caption, packing.step], packing.inputs)
    assert len(packing.inputs) == sum(length + 1 for row in lengths for length in row if length >= 0)
    assert len(set(zip(packing.caption.tolist(), packing.step.tolist()))) == len(packing.inputs)
    first = 0
    for step in packing.steps:
        captions = packing.caption[first : first + step.rows]
        images = packing.image_order[packing.row_image[: step.rows]]
        assert torch.equal(images, captions // 3)
        place = torch.arange(step.rows) if step.place is None else step.place
        assert len(set(place.tolist())) == step.rows and place.max() < step.images * step.slots
        assert torch.equal(place // step.slots, packing.row_image[: step.rows])
        first += step.rows
    assert [step.rows for step in packing.steps] == sorted((step.rows for step in packing.steps), reverse=True)
    assert np.diff([step.images for step in packing.steps]).max(initial=0) <= 0
