"""Everything that the rest of a run depends on, to a file and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.training.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state
from captioner.training.optimizers import Average


@dataclass
class Position:
    """Where a run stands, as JSON values.

    Attributes:
        epoch: the one at work, from 1, over all phases.
        step: steps of the optimiser done in it.
        phase: which phase.
        first_epoch: of the phase.
        steps: steps of the optimiser done in the phase.
        rates: learning rates of the last step, decoder and feature projection.
        loss_sum, token_sum: of the steps of the epoch.
        history: one row an epoch.
        seconds: time of each epoch.
        best_epoch: the epoch whose weights are the best, from 1; 0 before the first.
        stopped: why training is over; empty before.
    """

    epoch: int = 1
    step: int = 0
    phase: int = 0
    first_epoch: int = 1
    steps: int = 0
    rates: list[float] = field(default_factory=list)
    loss_sum: float = 0.0
    token_sum: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""


def trained_weights(decoder: CaptionDecoder) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}


def save_run(
    folder: Path, decoder: CaptionDecoder, optimizer: torch.optim.Optimizer, average: Average | None, best: dict[str, Tensor],
    position: Position, schedules: dict[str, Any],
) -> None:  # fmt: skip
    """Save a run's state with the generators of random numbers; ``schedules`` is JSON."""
    parts = {"weights": trained_weights(decoder), "best": best, "optimizer": optimizer_tensors(optimizer)}
    if average:
        parts["average"] = average.tensors
    parts["random"] = {"cpu": torch.get_rng_state()}
    device = decoder.vocabulary.weight.device
    if device.type == "cuda":
        parts["random"]["cuda"] = torch.cuda.get_rng_state(device)
    tensors = {f"{part}.{name}": tensor for part, members in parts.items() for name, tensor in members.items()}
    state = {**dataclasses.asdict(position), "schedules": schedules}
    save_state(folder, f"{position.epoch:06d}-{position.step:09d}", tensors, state)


def restore_run(
    folder: Path, decoder: CaptionDecoder, optimizer: torch.optim.Optimizer, average: Average | None
) -> tuple[Position, dict[str, Tensor], dict[str, Any]] | None:
    """Go back to the newest saved state: its position, best weights and schedules.

    None where there is no state, or none that fits this decoder (its code may have changed since).
    """
    found = load_state(folder)
    if found is None:
        return None
    tensors, state = found
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}, "average": {}, "random": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    saved, own = ({name: tensor.shape for name, tensor in weights.items()} for weights in (parts["weights"], trained_weights(decoder)))
    if saved != own:
        click.echo("train: the saved state is of a decoder with other layers; starting afresh", err=True)
        return None
    decoder.load_state_dict(parts["weights"], strict=False)  # frozen word vectors are not among them
    restore_optimizer(optimizer, parts["optimizer"])
    if average:
        average.restore(parts["average"])
    device = decoder.vocabulary.weight.device
    torch.set_rng_state(parts["random"]["cpu"])
    if device.type == "cuda" and "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"], device)
    schedules = state.pop("schedules")
    return Position(**state), {name: tensor.to(device) for name, tensor in parts["best"].items()}, schedules
