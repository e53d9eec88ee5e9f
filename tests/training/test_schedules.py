"""Early stopping, plateaus and the scales of steps, by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from captioner.parameters import TrainParameters
from captioner.parameters.registries import validation_metrics
from captioner.training.schedules import (
    EarlyStopping,
    Plateau,
    growing_gaps,
    lower_is_better,
    sampled_share,
    step_scale,
)


def test_early_stopping_counts_epochs_without_a_new_best() -> None:
    stopping, found = EarlyStopping(2), []
    for value in (3.0, 2.0, 2.0, 1.5, 1.6, 1.7):
        found.append((stopping.update(value), stopping.waited))
    assert found == [(True, 0), (True, 0), (False, 1), (True, 0), (False, 1), (False, 2)]
    assert stopping.best == 1.5
    other = EarlyStopping(2)
    other.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    assert other == stopping


def test_plateau_falls_as_torchs_scheduler() -> None:
    values = [5, 4, 4, 4.1, 4.2, 3.9, 3.95, 3.99, 3.98, 3.9, 3.9, 3.91, 2.0, 2.1]
    for patience in (0, 1, 2):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=0)
        plateau = Plateau(patience, 0.5)
        for value in values:
            reference.step(value)
            assert plateau.update(value) == optimizer.param_groups[0]["lr"]
            restored = Plateau(patience, 0.5)
            restored.load_state_dict(json.loads(json.dumps(plateau.state_dict())))
            plateau = restored


def scales(steps: int, **options: object) -> list[float]:
    """Of each step of a run with so many steps in all."""
    return [step_scale(TrainParameters(**options), step, step / steps) for step in range(steps)]


def test_scales_of_steps_by_hand() -> None:
    assert scales(3) == [1, 1, 1]
    assert scales(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert scales(7, step_every=3, step_factor=0.5) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert scales(4, step_every=1, step_factor=0.0) == [1, 0, 0, 0]
    root = math.sqrt(0.5)
    assert scales(8, cosine=True)[::2] == pytest.approx(
        [1, (1 + root) / 2, 0.5, (1 - root) / 2]
    )  # cos of 0, 45, 90, 135 degrees
    assert step_scale(TrainParameters(cosine=True), 8, 1.0) == pytest.approx(0, abs=1e-15)


def test_scales_multiply() -> None:
    found = scales(4, warmup_steps=2, step_every=2, step_factor=0.1, cosine=True)
    root = math.sqrt(0.5)
    assert found == pytest.approx([0.5 * 1, 1 * (1 + root) / 2, 0.1 * 0.5, 0.1 * (1 - root) / 2])


def test_growing_gaps_by_hand() -> None:
    gaps = [0.5, 0.6, 0.6, 0.7, 0.9, 0.8, 1.0]
    rows = [{"val_cross_entropy": 2 + gap, "train_cross_entropy": 2.0} for gap in gaps]
    assert [growing_gaps(rows[:count]) for count in range(8)] == [0, 0, 1, 0, 1, 2, 0, 1]


def test_more_accuracy_is_better_and_less_cross_entropy() -> None:
    row = {"val_cross_entropy": 2.0, "val_token_accuracy": 0.5, "val_bleu_4": 0.25, "val_cider_d": 1.5}
    assert [lower_is_better(row, metric) for metric in validation_metrics()] == [2.0, -0.5, -0.25, -1.5]


@pytest.mark.parametrize(
    ("kind", "quarters"),
    [
        ("linear", [0, 1 / 4, 1 / 2, 3 / 4, 1]),
        ("exponential", [0, (1 - 0.01**0.25) / 0.99, 0.9 / 0.99, (1 - 0.01**0.75) / 0.99, 1]),  # 0.01^0.5 = 0.1
        # e = 100/101, 100/110, 1/2, 100/1100, 1/101
        ("inverse_sigmoid", [0, 90 / 1089, 1 / 2, 999 / 1089, 1]),
    ],
)
def test_shares_of_scheduled_sampling_by_hand(kind: str, quarters: list[float]) -> None:
    options = TrainParameters(sampling=kind, sampling_start=3, sampling_epochs=4, sampling_rate=0.6)
    assert [sampled_share(options, epochs) for epochs in (2, 3, 4, 5, 6)] == pytest.approx(
        [0.6 * share for share in quarters]
    )
    assert [sampled_share(options, epochs) for epochs in (0, 1.5, 2)] == [0, 0, 0]
    assert sampled_share(options, 6) == sampled_share(options, 6.5) == sampled_share(options, 99) == pytest.approx(0.6)
    shares = [sampled_share(options, 2 + step / 50) for step in range(201)]
    rises = [after - before for before, after in zip(shares, shares[1:])]
    assert min(rises) > 0 and max(rises) < 0.6 * 0.025  # at every step, and never by a jump
    assert sampled_share(TrainParameters(), 3) == 0


def test_shares_are_the_papers() -> None:
    """Bengio et al. 2015, section 2.4: epsilon_i of true words at step i, here of n = 40 steps of 2 epochs."""
    n, steps = 40, range(41)

    def shares(kind: str, rate: float) -> list[float]:
        return [
            sampled_share(TrainParameters(sampling=kind, sampling_epochs=2, sampling_rate=rate), 2 * i / n)
            for i in steps
        ]

    assert shares("linear", 0.7) == pytest.approx([1 - max(1 - 0.7, 1 - 0.7 / n * i) for i in steps], abs=1e-12)
    k = 0.01 ** (1 / n)
    assert shares("exponential", 0.99) == pytest.approx([1 - k**i for i in steps], abs=1e-12)
    k = 100
    paper = [k / (k + math.exp(2 * k * math.log(k) * i / n / k)) for i in steps]
    assert shares("inverse_sigmoid", 99 / 101) == pytest.approx([100 / 101 - epsilon for epsilon in paper], abs=1e-12)
