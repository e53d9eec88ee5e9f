"""When learning rates fall and when training stops: both look at the validation cross entropy of each epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
