"""The interface of an objective."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from captioner.decoder import Decoder
from captioner.training.data import GlobalBatch


class Objective(nn.Module):
    """A loss of a decoder on a batch, as a module, so that DistributedDataParallel can wrap it.

    A training step calls, for each of its batches, ``prepare`` and then the module with what that returned; after the
    last one, ``finish``.

    Attributes:
        decoder: what is trained.
        metric: the name in the history of the mean that ``finish`` reports.
        counted: the name of what it is a mean of.
        state: tensors that a resumed run needs, the same on all ranks.
        statistics: how many numbers the second output has.
    """

    decoder: Decoder
    metric: str
    counted: str
    statistics: int = 1

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.state: dict[str, Tensor] = {}

    def prepare(
        self, features: Tensor, tokens: Tensor, counts: GlobalBatch, scale: float, epochs: float
    ) -> tuple[Tensor, ...]:
        """The inputs of the module; no gradient goes through what happens here.

        Args:
            features: (I, P, C) on the decoder's device; I may be 0.
            tokens: (I, K, T + 1) int64 on the CPU: START, words, END, PAD.
            counts: of the step, over all batches and ranks.
            scale: what the loss of a batch is multiplied with, besides 1 / count: the number of ranks, because
                DistributedDataParallel averages over them.
            epochs: done since the objective's first, with the part of the one at work.
        """
        raise NotImplementedError

    def forward(self, *tensors: Any) -> tuple[Tensor, Tensor]:
        """The loss, a scalar to backpropagate from; statistics (N,) to sum over batches and ranks, without gradient."""
        raise NotImplementedError

    def finish(self, statistics: Tensor, counts: GlobalBatch) -> tuple[Tensor, int]:
        """After a step: the summed statistics -> the sum of the metric and what divides it."""
        raise NotImplementedError
