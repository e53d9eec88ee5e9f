"""The phases of a training run, one after another; each begins from the best weights of the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.errors import CaptionerError
from captioner.parameters import TrainParameters
from captioner.training.batches import CaptionTable
from captioner.training.graph import StepGraph
from captioner.training.parallel import Whole
from captioner.training.reinforce import Reinforce
from captioner.training.reward import CaptionReward
from captioner.training.self_critical import self_critical_step
from captioner.training.step import training_step

Step = Callable[
    [CaptionDecoder, torch.optim.Optimizer, Sequence[tuple[Tensor, Tensor] | None], TrainParameters, Whole],
    tuple[Tensor, int],
]


@dataclass(frozen=True)
class Phase:
    """Some epochs with one kind of step.

    Attributes:
        name: what it is called where progress is shown.
        epochs: the most.
        step: does one step of the optimiser on this process's share of some batches, (features, tokens) each, None
            where it has no picture of one; gives a figure summed over the step of all processes, and what it is divided
            by for its mean.
        rates: learning rates of the decoder and of the feature projection.
        select_by: the figure of an epoch that chooses the best one and that patience waits for.
        figure: what the step's figure is called in the history.
        counted: what it is divided by.
        state: tensors by name that the step changes in place and keeps from one to the next, the same in all processes.
        graph: what the step is done by on a GPU; it must be fitted to the batches of each epoch.
    """

    name: str
    epochs: int
    step: Step
    rates: tuple[float, float]
    select_by: str
    figure: str = "train_cross_entropy"
    counted: str = "tokens"
    state: dict[str, Tensor] = field(default_factory=dict)
    graph: StepGraph | None = None

    @property
    def teacher_forced(self) -> bool:
        """It learns the captions themselves, by cross entropy."""
        return self.figure == "train_cross_entropy"

    @property
    def rate_name(self) -> str:
        """The parameter that sets the decoder's learning rate."""
        return "learning_rate" if self.teacher_forced else "scst_learning_rate"


def build_phases(
    options: TrainParameters, references: CaptionTable, max_length: int, decoder: CaptionDecoder
) -> list[Phase]:
    """Cross entropy under teacher forcing, then self-critical training; either where it has epochs.

    Args:
        references: the training captions, which self-critical training rewards captions by.
        max_length: words of its longest sample.
        decoder: what they train, in its place.

    Raises:
        CaptionerError: there is nothing to train, or self-critical training has nothing to begin from; scheduled
            sampling would never begin; the vocabulary is too large for the reward.
    """
    if not options.epochs and not options.scst_epochs:
        raise CaptionerError(
            "train.epochs=0: there is nothing to train; give it, or train.scst_epochs, at least one epoch"
        )
    if not options.epochs and options.init_from is None:
        raise CaptionerError(
            "train.epochs=0: self-critical training begins from a trained decoder; name its folder in train.init_from, or give "
            "train.epochs at least one epoch"
        )
    if options.sampling != "none" and options.sampling_start > options.epochs:
        raise CaptionerError(
            f"train.sampling_start={options.sampling_start}: there are only train.epochs={options.epochs} epochs; give an earlier one, "
            "or set train.sampling=none"
        )
    phases = []
    if options.epochs:
        rates = (options.learning_rate, options.projection_learning_rate)
        step, state, reinforce, graph = training_step, {}, None, None
        if decoder.config.attention == "hard":
            reinforce = Reinforce(decoder, options)
            step, state = partial(step, reinforce=reinforce), reinforce.state
        if StepGraph.fits(decoder):
            graph = StepGraph(decoder, options, reinforce)
            step = partial(step, graph=graph)
        phases.append(Phase("train", options.epochs, step, rates, options.select_by, state=state, graph=graph))
    if options.scst_epochs:
        step = partial(self_critical_step, CaptionReward(references, options.scst_bleu_weight), max_length)
        rates = (options.scst_learning_rate, options.scst_learning_rate)
        # judged by CIDEr-D, since the cross entropy grows meanwhile
        phases.append(
            Phase("self-critical", options.scst_epochs, step, rates, "val_cider_d", "train_reward", "samples")
        )
    return phases
