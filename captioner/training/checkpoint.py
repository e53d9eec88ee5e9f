"""Checkpoints of training: everything that the rest of a run depends on, in one file without pickle; two are kept.

A file is the SHA-256 (hex) of the rest, then a safetensors file whose header carries JSON. It is written atomically. A
file that was torn by a power cut, or damaged since, does not have its hash, and the checkpoint before it is taken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from captioner.errors import CaptionerError
from captioner.sidecar import write_atomically
from captioner.training.distributed import Group, rank_seed

_KEPT = 2
_DIGEST = 64
_SUFFIX = ".state"
Parts = dict[str, dict[str, Tensor]]


@dataclass
class TrainState:
    """How far a run is, as JSON values.

    Attributes:
        epoch: the current one, from 1, over all phases.
        step: steps of the optimizer done in it.
        phase: index of the current phase.
        first_epoch: of the phase.
        phase_steps: steps of the optimizer done in the phase.
        rates: learning rates of the last step, decoder and feature projection.
        metric_sum, metric_count: of the steps of the epoch.
        history: one row an epoch; epoch 0 comes first where the run began from trained weights.
        seconds: time of each epoch from 1.
        best_epoch: the epoch whose weights are the best; 0 before the first.
        stopped: why training is over; empty before.
    """

    epoch: int = 1
    step: int = 0
    phase: int = 0
    first_epoch: int = 1
    phase_steps: int = 0
    rates: list[float] = field(default_factory=list)
    metric_sum: float = 0.0
    metric_count: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""

    def row(self, epoch: int) -> dict[str, Any]:
        """The history's row of an epoch."""
        return next(row for row in self.history if row["epoch"] == epoch)

    @property
    def phase_rows(self) -> list[dict[str, Any]]:
        """The history's rows of the current phase."""
        return [row for row in self.history if row["epoch"] >= self.first_epoch]


def trained_weights(decoder: nn.Module) -> dict[str, Tensor]:
    """The parameters and running statistics that training changes, by name."""
    weights = {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    return weights | {name: buffer for name, buffer in decoder.named_buffers() if buffer.is_floating_point()}


def save_checkpoint(
    folder: Path | None, state: TrainState, schedules: dict[str, Any], parts: Parts, group: Group
) -> None:
    """Save a run with the random generators of every rank. All ranks call it; rank 0 writes, the others wait for it.

    Args:
        folder: where checkpoints are; not used by other ranks than 0.
        schedules: JSON values.
        parts: tensors of any device by part and name.

    Raises:
        CaptionerError: it cannot be written; the checkpoints before it remain.
    """
    generators: dict[str, Tensor] = {}
    for rank, states in enumerate(group.gather(_generator_states(group.device))):
        generators |= {f"{kind}.{rank}": content for kind, content in states.items()}
    if group.is_main and folder:
        tensors = {f"{part}.{name}": own for part, members in parts.items() for name, own in members.items()}
        tensors |= {f"random.{name}": own for name, own in generators.items()}
        content = {**dataclasses.asdict(state), "schedules": schedules}
        write_state(folder, f"{state.epoch:06d}-{state.step:09d}", tensors, content)
    group.any(True)


def load_checkpoint(
    folder: Path | None, decoder: nn.Module, group: Group, seed: int
) -> tuple[TrainState, dict, Parts] | None:
    """The newest whole checkpoint, which rank 0 reads for all: state, schedules and parts; the generators are set.

    None where there is none, or none of a decoder with these weights (its code may have changed since). Where it has no
    generator of this rank, one is seeded by ``seed``, rank, epoch and step.
    """
    payload = group.broadcast(_newest(folder) if group.is_main and folder else b"")
    if not payload:
        return None
    tensors, content = _parse(payload)
    parts: Parts = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    saved, own = ({name: part.shape for name, part in w.items()} for w in (parts["weights"], trained_weights(decoder)))
    if saved != own:
        if group.is_main:
            click.echo("train: the checkpoint is of a decoder with other layers; starting afresh", err=True)
        return None
    schedules = content.pop("schedules")
    state = TrainState(**content)
    _set_generators(parts.pop("random"), group, rank_seed(seed, group.rank, state.epoch, state.step))
    return state, schedules, parts


def write_state(folder: Path, name: str, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write one checkpoint; names of later ones sort after those of earlier ones.

    Raises:
        CaptionerError: it cannot be written; the checkpoints before it remain.
    """
    header = {"state": json.dumps(content)}  # floats come back exactly
    payload = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, header)
    path = folder / (name + _SUFFIX)
    try:
        write_atomically(path, hashlib.sha256(payload).hexdigest().encode() + payload)
        for old in _states(folder)[:-_KEPT]:
            old.unlink()
    except OSError as error:
        raise CaptionerError(
            f"{path}: the checkpoint cannot be saved ({error.strerror}); free the disk, and the same command goes on "
            "from the one before"
        ) from error


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole checkpoint, or None. Damaged newer ones are named on stderr and deleted."""
    payload = _newest(folder)
    return _parse(payload) if payload else None


def _newest(folder: Path) -> bytes:
    """A safetensors file; empty where there is no whole checkpoint."""
    for draft in folder.glob("*.tmp"):
        draft.unlink()
    for path in reversed(_states(folder)):
        content = path.read_bytes()
        payload = memoryview(content)[_DIGEST:]
        if hashlib.sha256(payload).hexdigest().encode() == content[:_DIGEST]:
            try:
                _parse(bytes(payload))
                return bytes(payload)
            except (SafetensorError, ValueError, KeyError):
                pass
        click.echo(f"{path}: a damaged checkpoint; going on from the one before", err=True)
        path.unlink()
    return b""


def _parse(payload: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    length = int.from_bytes(payload[:8], "little")  # safetensors: header length, JSON header, tensors
    header = json.loads(payload[8 : 8 + length])
    return load(payload), json.loads(header["__metadata__"]["state"])


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("*" + _SUFFIX))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as tensors named ``<parameter index>.<key>``, where it holds tensors and numbers."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave, into an optimizer with the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_generators(states: dict[str, Tensor], group: Group, seed: int) -> None:
    """Give this rank its own; ``seed`` is for one that has none among ``states``."""
    own = f"cpu.{group.rank}"
    if own not in states:
        torch.manual_seed(seed)
        return
    torch.set_rng_state(states[own])
    if group.device.type == "cuda" and f"cuda.{group.rank}" in states:
        torch.cuda.set_rng_state(states[f"cuda.{group.rank}"], group.device)
