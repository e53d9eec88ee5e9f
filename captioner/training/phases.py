"""The phases of a run, each with one objective: cross entropy, then self-critical training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captioner.batches import CaptionTable
from captioner.cuda_graphs import GraphedModule
from captioner.decoder import Decoder
from captioner.decoder.norm import BatchNorm
from captioner.errors import CaptionerError
from captioner.metrics.reward import CaptionReward
from captioner.parameters import TrainParameters
from captioner.training.checkpoint import Parts, optimizer_tensors, restore_optimizer, trained_weights
from captioner.training.distributed import Group
from captioner.training.objectives import CrossEntropy, Objective, SelfCritical
from captioner.training.optimizers import EMA, build_optimizer
from captioner.training.schedules import EarlyStopping, Plateau


@dataclass(frozen=True)
class Phase:
    """Some epochs with one objective.

    Attributes:
        name: where progress is shown.
        objective: what is minimized.
        epochs: the most.
        rates: learning rates of the decoder and of the feature projection.
        rate_name: the parameter that sets the first.
        select_by: the metric of an epoch that chooses the best one and that early stopping waits for.
        plateau_on: the metrics that lower the learning rates.
        captions_per_image: of a batch; 0: all.
    """

    name: str
    objective: Objective
    epochs: int
    rates: tuple[float, float]
    rate_name: str
    select_by: str
    plateau_on: tuple[str, ...]
    captions_per_image: int

    @property
    def teacher_forced(self) -> bool:
        """Whether it learns the captions themselves, by cross entropy."""
        return isinstance(self.objective, CrossEntropy)


def build_phases(options: TrainParameters, references: CaptionTable, max_length: int, decoder: Decoder) -> list[Phase]:
    """Cross entropy, then self-critical training; either where it has epochs.

    Args:
        references: the training captions, which give self-critical training its reward.
        max_length: words of its longest sample.
        decoder: what they train.

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
            "train.epochs=0: self-critical training begins from a trained decoder; name its folder in "
            "train.init_from, or give train.epochs at least one epoch"
        )
    if options.sampling != "none" and options.sampling_start > options.epochs:
        raise CaptionerError(
            f"train.sampling_start={options.sampling_start}: there are only train.epochs={options.epochs} epochs; give "
            "an earlier one, or set train.sampling=none"
        )
    phases = []
    if options.epochs:
        rates = (options.learning_rate, options.projection_learning_rate)
        objective = CrossEntropy(decoder, options)
        phases.append(
            Phase(
                "train",
                objective,
                options.epochs,
                rates,
                "learning_rate",
                options.select_by,
                options.plateau_on,
                options.captions_per_image,
            )
        )
    if options.scst_epochs:
        reward = CaptionReward(references, options.scst_bleu_weight)
        rates = (options.scst_learning_rate, options.scst_learning_rate)
        # selected by CIDEr-D, since the cross entropy grows meanwhile; a reward wants all references of an image
        phases.append(
            Phase(
                "self-critical",
                SelfCritical(decoder, options, reward, max_length),
                options.scst_epochs,
                rates,
                "scst_learning_rate",
                "val_cider_d",
                ("val_cider_d",),
                0,
            )
        )
    return phases


class Learner:
    """What a phase learns with; made anew for each phase.

    Attributes:
        graphed: the objective, with CUDA graphs on a GPU.
        model: what a step calls: ``graphed``, in DistributedDataParallel with several ranks.
        optimizer, ema, early_stopping, plateaus: see their classes; ``ema`` is None where ``train.ema`` is 0.
    """

    def __init__(self, phase: Phase, decoder: Decoder, options: TrainParameters, group: Group) -> None:
        self.decoder, self.objective = decoder, phase.objective
        has_batch_norm = any(isinstance(module, BatchNorm) for module in decoder.modules())
        # recording runs the forward pass several times, which would change a batch norm's running statistics
        graphs = group.device.type == "cuda" and not has_batch_norm
        hard = decoder.config.attention == "hard"  # in self-critical training its attention has no gradient
        self.graphed = GraphedModule(phase.objective, graphs)
        self.model: nn.Module = group.wrap(self.graphed, find_unused_parameters=hard)
        self.optimizer = build_optimizer(decoder, options)
        self.ema = EMA(trained_weights(decoder), options.ema) if options.ema else None
        self.early_stopping = EarlyStopping(options.patience)
        self.plateaus = {name: Plateau(options.plateau_patience, options.plateau_factor) for name in phase.plateau_on}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that the optimizer updates."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def no_sync(self) -> AbstractContextManager[None]:
        """Within, several ranks do not average gradients: more batches of the step follow."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def weights(self) -> dict[str, Tensor]:
        """A copy of what is validated: the weights, or their average."""
        weights = self.ema.tensors if self.ema else trained_weights(self.decoder)
        return {name: tensor.detach().clone() for name, tensor in weights.items()}

    def tensors(self) -> Parts:
        """For a checkpoint."""
        parts = {
            "weights": trained_weights(self.decoder),
            "optimizer": optimizer_tensors(self.optimizer),
            "objective": self.objective.state,
        }
        return parts | ({"ema": self.ema.tensors} if self.ema else {})

    def schedules(self) -> dict:
        """For a checkpoint, as JSON values."""
        plateaus = {name: plateau.state_dict() for name, plateau in self.plateaus.items()}
        return {"early_stopping": self.early_stopping.state_dict(), "plateaus": plateaus}

    @torch.no_grad()
    def restore(self, parts: Parts, schedules: dict) -> None:
        """Go back to what ``tensors`` and ``schedules`` gave."""
        self.decoder.load_state_dict(parts["weights"], strict=False)  # frozen word vectors are not among them
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        for name, tensor in self.objective.state.items():
            tensor.copy_(parts["objective"][name])
        if self.ema:
            self.ema.restore(parts["ema"])
        self.early_stopping.load_state_dict(schedules["early_stopping"])
        for name, plateau in self.plateaus.items():
            plateau.load_state_dict(schedules["plateaus"][name])
