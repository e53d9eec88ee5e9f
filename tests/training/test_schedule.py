"""Plateaus and patience, by hand."""

from __future__ import annotations

import torch

from captioner.training.schedule import Patience, Plateau


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
