"""Learning-rate schedules, the schedule of scheduled sampling, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captioner.parameters import TrainParameters


def lower_is_better(row: Mapping[str, Any], metric: str) -> float:
    """The metric of an epoch, negated where more is better."""
    return row[metric] if metric.endswith("cross_entropy") else -row[metric]


def step_scale(options: TrainParameters, step: int, done: float) -> float:
    """What the learning rates are multiplied with at a step: warm-up, steps and cosine, themselves multiplied.

    Args:
        step: steps of the optimiser before this one.
        done: share of all epochs that is done, in 0..1; the cosine (Loshchilov and Hutter 2017, without restarts) is 1
            at 0 and 0 at 1.
    """
    scale = 1.0
    if step < options.warmup_steps:
        scale *= (step + 1) / options.warmup_steps
    if options.step_every:
        scale *= options.step_factor ** (step // options.step_every)
    if options.cosine:
        scale *= (1 + math.cos(math.pi * done)) / 2
    return scale


_EPSILONS = {
    "linear": lambda x: 1 - x,
    "exponential": lambda x: 0.01**x,
    "inverse_sigmoid": lambda x: 100 / (100 + 100 ** (2 * x)),
}


def sampled_share(options: TrainParameters, epochs: float) -> float:
    """Fraction of the inputs that the decoder draws itself (scheduled sampling, Bengio et al. 2015, section 2.4).

    The paper's share of true words at step i is, by kind, max(epsilon, k - c i), k^i or k / (k + exp(i / k)). Here i
    counts from the first step of the epoch ``sampling_start``; with n steps in ``sampling_epochs`` epochs and x = i /
    n, at most 1,

        linear:           e(x) = 1 - x                      k = 1, c = 1 / n
        exponential:      e(x) = 0.01^x                     k = 0.01^(1 / n)
        inverse_sigmoid:  e(x) = 100 / (100 + 100^(2 x))    k = 100, and 2 x ln k for i / k: the middle is at x = 1/2

    and the share is ``sampling_rate`` * (e(0) - e(x)) / (e(0) - e(1)): whatever the kind 0 at the first step,
    ``sampling_rate`` (the paper's 1 - epsilon) from the end of those epochs on.

    Args:
        epochs: how many are done, with the part of the one at work.
    """
    if options.sampling == "none":
        return 0.0
    done = min(max((epochs - (options.sampling_start - 1)) / options.sampling_epochs, 0.0), 1.0)
    epsilon = _EPSILONS[options.sampling]
    return options.sampling_rate * (epsilon(0) - epsilon(done)) / (epsilon(0) - epsilon(1))


def growing_gaps(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many epochs in a row, up to the last, the gap of validation over training cross entropy grew."""
    gaps = [row["val_cross_entropy"] - row["train_cross_entropy"] for row in rows]
    count = 0
    for before, after in zip(gaps, gaps[1:]):
        count = count + 1 if after > before else 0
    return count


@dataclass
class EarlyStopping:
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

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes, as JSON values."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


class Plateau:
    """Multiplies the learning rates by ``factor`` when more than ``patience`` epochs bring no new best value.

    Args:
        patience: epochs without a new best that are allowed; 0: the rates fall after the first.
        factor: 1 leaves the rates alone.
    """

    def __init__(self, patience: int, factor: float) -> None:
        self._counter, self._factor, self.scale = EarlyStopping(patience), factor, 1.0

    def update(self, value: float) -> float:
        """Take in an epoch's value; the scale of the learning rates from here on, 1 at first."""
        self._counter.update(value)
        if self._counter.waited > self._counter.allowed:
            self.scale *= self._factor
            self._counter.waited = 0
        return self.scale

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes, as JSON values."""
        return {**self._counter.state_dict(), "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._counter.load_state_dict(state)
        self.scale = state["scale"]
