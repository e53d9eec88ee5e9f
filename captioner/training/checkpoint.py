"""Saved states of training: tensors and JSON in one file without pickle, written atomically, the last two kept.

A state file is the SHA-256 (hex) of the rest, then a safetensors file whose header carries the JSON. A file that was
torn by a power cut, or damaged since, does not have its hash, and the state before it is taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from captioner.errors import CaptionerError
from captioner.sidecar import write_atomically

_KEPT = 2
_DIGEST = 64
_SUFFIX = ".state"


def save_state(folder: Path, name: str, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Save one state; names of later states sort after those of earlier ones.

    Args:
        tensors: on any device.
        state: JSON-serialisable.

    Raises:
        CaptionerError: it cannot be written; the states before it remain.
    """
    header = {"state": json.dumps(state)}  # floats come back exactly
    payload = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, header)
    path = folder / (name + _SUFFIX)
    try:
        write_atomically(path, hashlib.sha256(payload).hexdigest().encode() + payload)
        for old in _states(folder)[:-_KEPT]:
            old.unlink()
    except OSError as error:
        raise CaptionerError(
            f"{path}: the training state cannot be saved ({error.strerror}); free the disk, and the same command goes on "
            "from the state before"
        ) from error


def load_state(
    folder: Path | None, share: Callable[[bytes], bytes] = bytes
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole state, or None where there is none. Damaged newer ones are named on stderr and deleted.

    Args:
        folder: where states are; None in a process that gets the state from another one.
        share: gives the same bytes, those of the process that has the folder, to all processes.
    """
    payload = share(_newest(folder) if folder else b"")
    return _parse(payload) if payload else None


def _newest(folder: Path) -> bytes:
    """A safetensors file; empty where there is no whole state."""
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
        click.echo(f"{path}: a damaged training state; going on from the one before", err=True)
        path.unlink()
    return b""


def _parse(payload: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    length = int.from_bytes(payload[:8], "little")  # safetensors: header length, JSON header, tensors
    header = json.loads(payload[8 : 8 + length])
    return load(payload), json.loads(header["__metadata__"]["state"])


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("*" + _SUFFIX))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors named ``<parameter index>.<key>``, for any optimiser whose state holds tensors
    and numbers."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave, into an optimiser with the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
