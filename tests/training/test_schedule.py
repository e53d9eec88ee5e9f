"""Plateaus and patience, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from captioner.parameters import TrainParameters
from captioner.parameters.schema import VALIDATION_METRICS
from captioner.training.schedule import Patience, Plateau, growing_gaps, lower_is_better, step_scale


def test_patience_counts_epochs_without_a_new_best() -> None:
    patience = Patience(2)
    assert [patience.update(value) for value in (3.0, 2.0, 2.0, 1.5, 1.6, 1.7)] == [True, True, False, True, False, False]
    assert patience.best == 1.5 and patience.waited == 2
    other = Patience(2)
    other.restore(patience.state())
    assert other == patience


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
            restored.restore(plateau.state())
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
    assert scales(8, cosine=True)[::2] == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2])  # cos of 0, 45, 90, 135 degrees
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
    assert [lower_is_better(row, metric) for metric in VALIDATION_METRICS] == [2.0, -0.5, -0.25, -1.5]
