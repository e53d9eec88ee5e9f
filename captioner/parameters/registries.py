"""Choices that come from registries: a new decoder, attention, norm, optimizer or metric is accepted once registered.

Each function imports its registry when it is called, because params.yaml is also read by processes without torch.
"""

from __future__ import annotations

from collections.abc import Iterable


def decoders() -> Iterable[str]:
    """Values of ``decoder``."""
    from captioner.decoder.registry import DECODERS

    return DECODERS


def attentions() -> Iterable[str]:
    """Values of ``attention``."""
    from captioner.decoder.attention import ATTENTIONS

    return ATTENTIONS


def norms() -> Iterable[str]:
    """Values of ``train.norm``."""
    from captioner.decoder.norm import NORMS

    return NORMS


def optimizers() -> Iterable[str]:
    """Values of ``train.optimizer``."""
    from captioner.training.optimizers import OPTIMIZERS

    return OPTIMIZERS


def tokenizers() -> Iterable[str]:
    """Values of ``vocab.tokenizer``."""
    from captioner.vocabulary.tokenizers import TOKENIZERS

    return TOKENIZERS


def metrics() -> Iterable[str]:
    """Values of ``evaluate.select_by``."""
    from captioner.metrics.scores import METRICS

    return METRICS


def validation_metrics() -> Iterable[str]:
    """Values of ``train.select_by`` and ``train.plateau_on``."""
    from captioner.training.validation import SCORES

    return ("val_cross_entropy", "val_token_accuracy", *SCORES)
