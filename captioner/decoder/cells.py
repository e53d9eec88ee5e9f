"""Recurrent cells without their matrix products, which the decoder computes for all tokens at once where it can.

Both equal ``torch.nn.GRUCell`` and ``torch.nn.LSTMCell``. The blocks of columns are in torch's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

States = tuple[Tensor, ...]


class Cell(NamedTuple):
    """A kind of recurrent cell.

    Attributes:
        gates: how many blocks of H columns the two products W x and U h have.
        states: how many tensors (..., H) the state has; the first is h, the output.
        update: W x (..., gates * H), U h (..., gates * H) and the state -> the next state.
    """

    gates: int
    states: int
    update: Callable[[Tensor, Tensor, States], States]


def gru(inputs: Tensor, hidden: Tensor, state: States) -> States:
    """Gated recurrent unit (Cho et al. 2014, section 2.3): blocks r, z, n; the reset gate after the product."""
    (h,) = state
    reset_x, update_x, new_x = inputs.chunk(3, -1)
    reset_h, update_h, new_h = hidden.chunk(3, -1)
    reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + reset * new_h)
    return (new + update * (h - new),)


def lstm(inputs: Tensor, hidden: Tensor, state: States) -> States:
    """Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000): blocks i, f, g, o."""
    _, c = state
    i, f, g, o = (inputs + hidden).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


GRU = Cell(gates=3, states=1, update=gru)
LSTM = Cell(gates=4, states=2, update=lstm)
