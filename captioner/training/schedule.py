"""When learning rates rise and fall and when training stops: by the figures of each epoch, and by the number of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from captioner.parameters import TrainParameters


def lower_is_better(row: Mapping[str, Any], metric: str) -> float:
    """An epoch's figure ``metric``, turned round where more is better."""
    return row[metric] if metric.endswith("cross_entropy") else -row[metric]


def step_scale(options: TrainParameters, step: int, done: float) -> float:
    """What the learning rates are multiplied with at a step: warm-up, steps and cosine, themselves multiplied.

    Args:
        step: steps of the optimiser before this one.
        done: share of all epochs that is done, in 0..1; the cosine (Loshchilov and Hutter 2017, without restarts) is 1 at 0 and 0 at 1.
    """
    scale = 1.0
    if step < options.warmup_steps:
        scale *= (step + 1) / options.warmup_steps
    if options.step_every:
        scale *= options.step_factor ** (step // options.step_every)
    if options.cosine:
        scale *= (1 + math.cos(math.pi * done)) / 2
    return scale


def growing_gaps(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many epochs in a row, up to the last, the gap of validation over training cross entropy grew."""
    gaps = [row["val_cross_entropy"] - row["train_cross_entropy"] for row in rows]
    count = 0
    for before, after in zip(gaps, gaps[1:]):
        count = count + 1 if after > before else 0
    return count


@dataclass
class Patience:
    """Counts epochs without a new best value.

    Attributes:
        allowed: how many may pass.
        best: the lowest value so far, None before the first.
        waited: epochs since then.
    """

    allowed: int
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> bool:
        """Take in an epoch's value; True where it is a new best."""
        if self.best is None or value < self.best:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes, as JSON values."""
        return {"best": self.best, "waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


class Plateau:
    """Multiplies the learning rates by ``factor`` when more than ``patience`` epochs bring no new best value.

    Args:
        patience: epochs without a new best that are allowed; 0: the rates fall after the first.
        factor: 1 leaves the rates alone.
    """

    def __init__(self, patience: int, factor: float) -> None:
        self._patience, self._factor, self.scale = Patience(patience), factor, 1.0

    def update(self, value: float) -> float:
        """Take in an epoch's value; the scale of the learning rates from here on, 1 at first."""
        self._patience.update(value)
        if self._patience.waited > self._patience.allowed:
            self.scale *= self._factor
            self._patience.waited = 0
        return self.scale

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes, as JSON values."""
        return {**self._patience.state(), "scale": self.scale}

    def restore(self, state: dict[str, Any]) -> None:
        self._patience.restore(state)
        self.scale = state["scale"]
