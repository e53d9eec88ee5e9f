"""Recurrent cells, each in a module of its own name; a new cell is one new file here.

A cell module defines ``Cell`` with

* ``gates``: how many blocks of H columns its input and hidden parts have;
* ``states``: how many tensors (B, H) its state has; the first one is h, the output;
* ``combine(inputs (B, gates * H), hidden (B, gates * H), state) -> state``: everything after the two matrix products.

The products themselves belong to the decoder, which shares them with attention and computes those of all words at once.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from captioner.errors import CaptionerError


class RecurrentCell(Protocol):
    """What the decoder asks of a cell."""

    gates: int
    states: int

    def combine(self, inputs: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Input part and hidden part (B, gates * H), state of (B, H) tensors -> the next state."""


def build_cell(name: str) -> RecurrentCell:
    """The cell called ``name``.

    Raises:
        CaptionerError: there is none.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise CaptionerError(f"decoder={name}: no such recurrent cell; it must be one of {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{name}").Cell()
