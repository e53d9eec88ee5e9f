"""BLEU-1 to BLEU-4 (Papineni et al. 2002), as pycocoevalcap computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from captioner.metrics.metric import Corpus, Metric, MetricValues
from captioner.metrics.package import import_class

_ORDERS = (1, 2, 3, 4)
COLUMNS = (
    *(f"bleu_guess_{n}" for n in _ORDERS),
    *(f"bleu_correct_{n}" for n in _ORDERS),
    "bleu_length",
    "bleu_reference_length",
)


def _score(corpus: Corpus) -> tuple[list[float], list[list[float]], np.ndarray]:
    """Corpus values of the four orders, their per-image values, and the per-image statistics."""
    scorer = import_class("bleu.bleu_scorer", "BleuScorer")(n=4)
    for candidate, references in zip(corpus.candidates, corpus.references, strict=True):
        scorer += (candidate, references)
    overall, per_image = scorer.compute_score(option="closest", verbose=0)
    return overall, per_image, statistics(scorer.ctest)


def statistics(counts: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(N, 10) statistics, the columns of ``COLUMNS``.

    Args:
        counts: pycocoevalcap's counts of each caption: ``guess`` and ``correct`` n-grams (n = 1 to 4), ``testlen``,
            ``reflen`` of all references.
    """
    # the closest reference length; of two equally close ones the shorter
    closest = [min((abs(length - each["testlen"]), length) for length in each["reflen"])[1] for each in counts]
    rows = [
        [*each["guess"], *each["correct"], each["testlen"], length]
        for each, length in zip(counts, closest, strict=True)
    ]
    return np.array(rows, dtype=np.float64)


def _compute(n: int, corpus: Corpus) -> MetricValues:
    overall, per_image, table = corpus.once(_score)
    return MetricValues(overall[n - 1], per_image[n - 1], table)


def _combine(order: int, sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """BLEU with the closest reference length, with pycocoevalcap's small constants against division by zero."""
    tiny, small = 1e-15, 1e-9
    ratio = (sums["bleu_length"] + tiny) / (sums["bleu_reference_length"] + small)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    product = np.ones_like(ratio)
    for n in _ORDERS[:order]:
        product = product * (sums[f"bleu_correct_{n}"] + tiny) / (sums[f"bleu_guess_{n}"] + small)
    return product ** (1 / order) * penalty


METRICS = tuple(Metric(f"bleu_{n}", f"BLEU-{n}", partial(_compute, n), COLUMNS, partial(_combine, n)) for n in _ORDERS)
