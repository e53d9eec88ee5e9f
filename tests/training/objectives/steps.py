"""One training step of an objective, as the training loop does it, on batches given as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.parameters import TrainParameters
from captioner.training.data import GlobalBatch
from captioner.training.objectives import Objective
from captioner.training.train import autocast
from captioner.vocabulary.vocabulary import PAD


def count(batches: Sequence[tuple[Tensor, Tensor]]) -> GlobalBatch:
    """Tokens to predict, captions and images of batches of features and tokens (I, K, T + 1)."""
    tokens = [int((tokens[..., 1:] != PAD).sum()) for _, tokens in batches]
    captions = [int((tokens[..., 0] != PAD).sum()) for _, tokens in batches]
    return GlobalBatch(sum(tokens), sum(captions), sum(len(features) for features, _ in batches))


def step(
    objective: Objective,
    batches: Sequence[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer | None = None,
    options: TrainParameters | None = None,
    epochs: float = 0.0,
) -> tuple[float, int]:
    """What ``finish`` reports. The gradient of the step is left in the parameters.

    Args:
        optimizer: makes its step with that gradient.
        options: ``precision`` is used.
        epochs: done before.
    """
    counts, statistics = count(batches), torch.zeros(objective.statistics)
    objective.zero_grad()
    for features, tokens in batches:
        tensors = objective.prepare(features, tokens, counts, 1, epochs)
        with autocast(features.device, options or TrainParameters()):
            loss, own = objective(*tensors)
        loss.backward()
        assert not own.requires_grad
        statistics = statistics + own
    total, divisor = objective.finish(statistics, counts)
    if optimizer:
        optimizer.step()
    return float(total), divisor
