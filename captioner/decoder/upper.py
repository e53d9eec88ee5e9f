"""The recurrent layers above the first one, which alone looks at the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captioner.decoder.cells import RecurrentCell
from captioner.decoder.deferred import DeferredLinear


class UpperLayer(nn.Module):
    """h(t) = cell(x(t), h(t-1)) for the output x(t) of the layer below (Graves 2013, "Generating sequences with
    recurrent neural networks").

    Nothing goes back down, so under teacher forcing the input's product is one for all tokens, once the layer below is
    done.

    Args:
        cell: the decoder's.
        size: H, of its state and of the layer below.
    """

    def __init__(self, cell: RecurrentCell, size: int) -> None:
        super().__init__()
        self.cell = cell
        self.input = nn.Linear(size, cell.gates * size)
        self.recurrent = nn.Linear(size, cell.gates * size)
        for block in self.recurrent.weight.data.split(size):
            nn.init.orthogonal_(block)

    def step(self, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One word further: the output of the layer below and each tensor of the state (R, H) -> the next state."""
        return self.cell.combine(self.input(x), self.recurrent(state[0]), state)

    def forward(self, x: Tensor, state: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """All steps of a packed batch.

        Args:
            x: (M, H) outputs of the layer below, step after step.
            state: the first one, tensors (B, H).
            rows: of each step, M in all, none more than the one before.

        Returns:
            The outputs h, (M, H).
        """
        inputs = self.input(x).to(x.dtype).split(list(rows))  # (B_t, gates * H) each
        recurrent = DeferredLinear(self.recurrent.weight, self.recurrent.bias, len(x), (self.recurrent.out_features,))
        outputs = []
        with torch.autocast(
            x.device.type, enabled=False
        ):  # the deferred product keeps its dtype; what is left is small
            for part, count in zip(inputs, rows):
                state = [tensor[:count] for tensor in state]
                (hidden,) = recurrent(state[0])
                state = self.cell.combine(part, hidden, state)
                outputs.append(state[0])
        return torch.cat(outputs)
