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
from captioner.training.parallel import Group, process_seed


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
        history: one row an epoch; epoch 0 stands before the first where the run began from trained weights.
        seconds: time of each epoch from 1.
        best_epoch: the epoch whose weights are the best; 0 before the first.
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

    def row(self, epoch: int) -> dict[str, Any]:
        """An epoch's row of the history."""
        return next(row for row in self.history if row["epoch"] == epoch)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the phase at work."""
        return [row for row in self.history if row["epoch"] >= self.first_epoch]


def trained_weights(decoder: CaptionDecoder) -> dict[str, Tensor]:
    """The parameters and running statistics that training changes, by name."""
    return {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad} | dict(
        decoder.named_buffers()
    )


def save_run(
    folder: Path,
    decoder: CaptionDecoder,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    best: dict[str, Tensor],
    position: Position,
    schedules: dict[str, Any],
    step: dict[str, Tensor],
    group: Group,
) -> None:
    """Save a run's state with every process's generators of random numbers; ``schedules`` is JSON, ``step`` what the
    phase's step keeps.

    All processes call it, rank 0 alone writes, and they return when it has.
    """
    parts = {"weights": trained_weights(decoder), "best": best, "optimizer": optimizer_tensors(optimizer), "step": step}
    if average:
        parts["average"] = average.tensors
    parts["random"] = _generators(group)
    if group.leads:
        tensors = {f"{part}.{name}": tensor for part, members in parts.items() for name, tensor in members.items()}
        state = {**dataclasses.asdict(position), "schedules": schedules}
        save_state(folder, f"{position.epoch:06d}-{position.step:09d}", tensors, state)
    group.agree(True)


def restore_run(
    folder: Path | None,
    decoder: CaptionDecoder,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    group: Group,
    seed: int,
) -> tuple[Position, dict[str, Tensor], dict[str, Any], dict[str, Tensor]] | None:
    """Go back to the newest saved state: its position, best weights, schedules, and what the step of its phase keeps.

    None where there is no state, or none that fits this decoder (its code may have changed since). Rank 0 reads it for
    all. With other processes than those that saved it the run goes on too, but the generator of a process that the
    state does not know is drawn from ``seed``, its rank, the epoch and the step.
    """
    found = load_state(folder, group.broadcast_bytes)
    if found is None:
        return None
    tensors, state = found
    parts: dict[str, dict[str, Tensor]] = {
        "weights": {},
        "best": {},
        "optimizer": {},
        "average": {},
        "random": {},
        "step": {},
    }
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    saved, own = (
        {name: tensor.shape for name, tensor in weights.items()}
        for weights in (parts["weights"], trained_weights(decoder))
    )
    if saved != own:
        if group.leads:
            click.echo("train: the saved state is of a decoder with other layers; starting afresh", err=True)
        return None
    decoder.load_state_dict(parts["weights"], strict=False)  # frozen word vectors are not among them
    restore_optimizer(optimizer, parts["optimizer"])
    if average:
        average.restore(parts["average"])
    device = decoder.vocabulary.weight.device
    schedules = state.pop("schedules")
    position = Position(**state)
    _restore_generators(parts["random"], group, process_seed(seed, group.rank, position.epoch, position.step))
    return position, {name: tensor.to(device) for name, tensor in parts["best"].items()}, schedules, parts["step"]


def _generators(group: Group) -> dict[str, Tensor]:
    """The states of all processes' generators; ``cpu`` and ``cuda`` are rank 0's, ``cpu.1`` and ``cuda.1`` those of
    rank 1."""
    own = {"cpu": torch.get_rng_state()}
    if group.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(group.device)
    states = {}
    for kind, state in own.items():
        for rank, content in enumerate(group.gather_bytes(state.numpy().tobytes())):
            states[kind + (f".{rank}" if rank else "")] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return states


def _restore_generators(states: dict[str, Tensor], group: Group, seed: int) -> None:
    """Give this process its own; ``seed`` is for one that has none among ``states``."""
    end = f".{group.rank}" if group.rank else ""
    if "cpu" + end not in states:
        torch.manual_seed(seed)
        return
    torch.set_rng_state(states["cpu" + end])
    if group.device.type == "cuda" and "cuda" + end in states:
        torch.cuda.set_rng_state(states["cuda" + end], group.device)
