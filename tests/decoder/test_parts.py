"""The pieces of the decoder against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.decoder import DecoderConfig
from captioner.decoder.attention import build_attention
from captioner.decoder.attention.base import Attention
from captioner.decoder.categorical import draw, draw_words
from captioner.decoder.cells import GRU, LSTM, Cell
from captioner.decoder.recurrent import Layer
from tests.decoder.examples import make_decoder, make_features

CELLS = [(GRU, nn.GRUCell), (LSTM, nn.LSTMCell)]


@pytest.mark.parametrize(("cell", "reference"), CELLS)
def test_a_layer_is_torchs_cell(cell: Cell, reference: type) -> None:
    """With copied weights: states and all gradients."""
    torch.manual_seed(0)
    other, layer = reference(4, 6).double(), Layer(cell, 6).double()
    layer.recurrent.load_state_dict({"weight": other.weight_hh, "bias": other.bias_hh})
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    state = [torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(cell.states)]
    found = layer(x @ other.weight_ih.T + other.bias_ih, tuple(state))
    rows = [tensor.flatten(0, 1) for tensor in state]
    expected = other(x.flatten(0, 1), tuple(rows) if reference is nn.LSTMCell else rows[0])
    expected = expected if reference is nn.LSTMCell else (expected,)
    assert len(found) == cell.states
    factors = [torch.randn(3, 2, 6, dtype=torch.float64) for _ in found]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one.flatten(0, 1), two)
    loss, other_loss = (
        sum((output.view(3, 2, 6).tanh() * factor).sum() for output, factor in zip(outputs, factors))
        for outputs in (found, expected)
    )
    ours = torch.autograd.grad(loss, [layer.recurrent.weight, layer.recurrent.bias, other.weight_ih, *state])
    theirs = torch.autograd.grad(other_loss, [other.weight_hh, other.bias_hh, other.weight_ih, *state])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("cell", "reference"), CELLS)
def test_cell_gradients(cell: Cell, reference: type) -> None:
    torch.manual_seed(0)
    sizes = [cell.gates * 4, cell.gates * 4, *[4] * cell.states]
    inputs = [torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(lambda x, h, *state: cell.update(x, h, state), inputs)


@pytest.mark.parametrize(("cell", "reference"), CELLS)
def test_a_step_of_stacked_layers_is_torchs_cells(cell: Cell, reference: type) -> None:
    """The bottom cell reads the word and the gated mean feature, the cell above it the bottom cell's output."""
    model = make_decoder("gru" if cell is GRU else "lstm", "none", layers=2)
    bottom, top = reference(5 + 8, 10).double(), reference(10, 10).double()
    own = dict(model.named_parameters())
    bottom.load_state_dict(
        {
            "weight_ih": torch.cat([own["word.weight"], own["context.weight"]], 1),
            "bias_ih": own["word.bias"],
            "weight_hh": own["layers.0.recurrent.weight"],
            "bias_hh": own["layers.0.recurrent.bias"],
        }
    )
    top.load_state_dict(
        {
            "weight_ih": own["between.0.weight"],
            "bias_ih": own["between.0.bias"],
            "weight_hh": own["layers.1.recurrent.weight"],
            "bias_hh": own["layers.1.recurrent.bias"],
        }
    )
    memory = model.encode(make_features(1))
    state = model.initial_state(memory, 1)
    tensors = [tensor[0] for tensor in state.tensors]  # (1, H) each
    below, above = tensors[: cell.states], tensors[cell.states :]
    for word in (1, 7, 9):
        z = memory.values[0].mean(0, keepdim=True) * torch.sigmoid(model.gate(below[0]))
        x = torch.cat([model.embedding.weight[word].unsqueeze(0), z], 1)
        below = bottom(x, tuple(below)) if cell is LSTM else (bottom(x, below[0]),)
        above = top(below[0], tuple(above)) if cell is LSTM else (top(below[0], above[0]),)
        _, state, _ = model.step(torch.tensor([[word]]), state, memory)
        for ours, theirs in zip(state.tensors, (*below, *above), strict=True):
            torch.testing.assert_close(ours[0], theirs)


def test_recurrent_matrices_begin_orthogonal() -> None:
    torch.manual_seed(0)
    for block in Layer(LSTM, 12).recurrent.weight.split(12):
        torch.testing.assert_close(block @ block.T, torch.eye(12), rtol=1e-5, atol=1e-5)


def make_attention(name: str, **sizes: int) -> tuple[Attention, Tensor, Tensor]:
    """With values (3, 7, E) and hidden states (3, 2, H)."""
    torch.manual_seed(0)
    options = {"feature_size": 8, "hidden_size": 10, "attention_size": 6, "heads": 2, **sizes}
    config = DecoderConfig("gru", name, 23, 5, 11, 7, **options)
    attention = build_attention(config).double().eval()
    values = torch.randn(3, 7, config.feature_size, dtype=torch.float64, requires_grad=True)
    return attention, values, torch.randn(3, 2, config.hidden_size, dtype=torch.float64, requires_grad=True)


def attend(attention: Attention, hidden: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return attention(hidden, attention.keys(values), values, values.mean(1))


@pytest.mark.parametrize("name", ["soft", "dot", "multihead", "bilinear", "none"])
def test_attention_gradients(name: str) -> None:
    attention, values, hidden = make_attention(name)
    assert torch.autograd.gradcheck(lambda h, v: attend(attention, h, v), (hidden, values))


@pytest.mark.parametrize("name", ["soft", "hard", "dot", "multihead", "bilinear", "none"])
def test_weights_are_probabilities_and_captions_do_not_see_each_other(name: str) -> None:
    attention, values, hidden = make_attention(name)
    context, weights = attend(attention, hidden, values)
    assert context.shape == (3, 2, 8) and weights.shape == (3, 2, 7) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, dtype=torch.float64))
    for k in range(2):
        alone, own = attend(attention, hidden[:, k : k + 1], values)
        torch.testing.assert_close(alone[:, 0], context[:, k])
        torch.testing.assert_close(own[:, 0], weights[:, k])


def test_dot_attention_is_torchs() -> None:
    attention, values, hidden = make_attention("dot")
    query, keys = attention.query(hidden), values @ attention.key.weight.T
    torch.testing.assert_close(
        attend(attention, hidden, values)[0], F.scaled_dot_product_attention(query, keys, values)
    )


def test_multihead_attention_is_torchs() -> None:
    """With copied weights, where all sizes are equal as torch wants them."""
    attention, values, hidden = make_attention("multihead", feature_size=12, hidden_size=12, attention_size=12, heads=3)
    other = nn.MultiheadAttention(12, 3, batch_first=True).double()
    none = torch.zeros(12, dtype=torch.float64)
    other.load_state_dict(
        {
            "in_proj_weight": torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]),
            "in_proj_bias": torch.cat([attention.query.bias, none, none]),
            "out_proj.weight": attention.output.weight,
            "out_proj.bias": none,
        }
    )
    for found, expected in zip(attend(attention, hidden, values), other(hidden, values, values), strict=True):
        torch.testing.assert_close(found, expected)


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
