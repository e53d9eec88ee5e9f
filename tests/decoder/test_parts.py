"""The pieces of the decoder against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captioner.decoder.cells import GRU, LSTM, Cell
from captioner.decoder.recurrent import Layer
from tests.decoder.examples import make_decoder, make_features, make_tokens

CELLS = {"gru": (GRU, nn.GRUCell), "lstm": (LSTM, nn.LSTMCell)}


@pytest.mark.parametrize(("cell", "reference"), CELLS.values(), ids=CELLS)
def test_cell_is_torchs_cell(cell: Cell, reference: type) -> None:
    torch.manual_seed(0)
    other = reference(4, 6).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    state = tuple(torch.randn(3, 6, dtype=torch.float64) for _ in range(cell.states))
    inputs, hidden = x @ other.weight_ih.T + other.bias_ih, state[0] @ other.weight_hh.T + other.bias_hh
    found = cell.update(inputs, hidden, state)
    expected = other(x, state) if cell.states == 2 else (other(x, state[0]),)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("cell", [GRU, LSTM], ids=CELLS)
def test_cell_gradients(cell: Cell) -> None:
    torch.manual_seed(0)
    sizes = [cell.gates * 4, cell.gates * 4, *[4] * cell.states]
    inputs = [torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(lambda x, h, *state: cell.update(x, h, state), inputs)


@pytest.mark.parametrize("name", CELLS)
def test_stacked_layers_are_torchs_cells_with_the_same_weights(name: str) -> None:
    """The bottom cell reads the word and the gated mean feature, each further one the output below it."""
    model, tokens = make_decoder(name, "none", layers=2), make_tokens([[4, 3], [5, 2]])
    kind, width = CELLS[name][1], model.config.hidden_size
    cells = [kind(model.config.embedding_size + model.config.feature_size, width), kind(width, width)]
    for cell, layer, inputs, bias in (
        (cells[0], model.layers[0], torch.cat([model.word.weight, model.context.weight], 1), model.word.bias),
        (cells[1], model.layers[1], model.between[0].weight, model.between[0].bias),
    ):
        cell.double().load_state_dict(
            {
                "weight_ih": inputs,
                "bias_ih": bias,
                "weight_hh": layer.recurrent.weight,
                "bias_hh": layer.recurrent.bias,
            }
        )
    memory = model.encode(make_features(2))
    state = model.initial_state(memory, 2)
    torch.testing.assert_close(state.tensors[0][0, 0], torch.tanh(model.initial(memory.mean))[0, :width])
    count = 2 if name == "lstm" else 1
    theirs = [[tensor.flatten(0, 1) for tensor in state.tensors[:count]]]
    theirs.append([tensor.flatten(0, 1) for tensor in state.tensors[count:]])
    for step in range(3):
        h = theirs[0][0]
        context = memory.mean.repeat_interleave(2, 0) * torch.sigmoid(model.gate(h))
        x = torch.cat([model.embedding(tokens[:, :, step]).flatten(0, 1), context], 1)
        for cell, own in zip(cells, theirs):
            new = cell(x, tuple(own)) if name == "lstm" else (cell(x, own[0]),)
            own[:] = new
            x = new[0]
        _, state, _ = model.step(tokens[:, :, step], state, memory)
        for one, two in zip(state.tensors, [*theirs[0], *theirs[1]], strict=True):
            torch.testing.assert_close(one.flatten(0, 1), two, rtol=1e-10, atol=1e-12)


def test_recurrent_matrices_begin_orthogonal() -> None:
    torch.manual_seed(0)
    for block in Layer(LSTM, 12).recurrent.weight.split(12):
        torch.testing.assert_close(block @ block.T, torch.eye(12), rtol=1e-5, atol=1e-5)
