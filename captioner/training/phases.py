"""The phases of a training run, one after another; each begins from the best weights of the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.parameters import TrainParameters
from captioner.training.step import training_step

Step = Callable[[CaptionDecoder, torch.optim.Optimizer, Sequence[tuple[Tensor, Tensor]], TrainParameters], tuple[Tensor, int]]


@dataclass(frozen=True)
class Phase:
    """Some epochs with one kind of step.

    Attributes:
        name: what it is called where progress is shown.
        epochs: the most.
        step: does one step of the optimiser on some batches, (features, tokens) each; gives a summed figure and what it is divided by
            for its mean.
        rates: learning rates of the decoder and of the feature projection.
        select_by: the figure of an epoch that chooses the best one and that patience waits for.
    """

    name: str
    epochs: int
    step: Step
    rates: tuple[float, float]
    select_by: str


def build_phases(options: TrainParameters) -> list[Phase]:
    """Cross entropy under teacher forcing."""
    return [Phase("train", options.epochs, training_step, (options.learning_rate, options.projection_learning_rate), options.select_by)]
