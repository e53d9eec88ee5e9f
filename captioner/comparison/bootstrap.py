"""The paired bootstrap over images (Efron and Tibshirani 1993; for corpus scores Koehn 2004)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from captioner.metrics.statistics import Statistics

RESAMPLES = 1000
LEVEL = 0.95  # of intervals
_SEED = 1
_DRAWN_AT_ONCE = 2_000_000  # images in a block of resamples: 16 MB
_ROUNDING = 1e-12  # differences of scores that are nearer than this are equal


def resample(tables: Sequence[Statistics], resamples: int = RESAMPLES) -> list[dict[str, np.ndarray]]:
    """Scores of many data sets drawn from the images with replacement; the same draws for every table, so that
    differences are paired.

    A resample's scores are computed as those of a data set of its own: BLEU and METEOR from its summed statistics,
    ROUGE-L and CIDEr-D as means, CIDEr-D with the document frequencies of the whole set. The draws have a fixed seed:
    the same tables, the same numbers.

    Args:
        tables: statistics of the same N images in the same order.

    Returns:
        Of each table, metric -> (resamples,) scores.
    """
    images = len(tables[0].image_ids)
    generator = np.random.default_rng(_SEED)
    block = max(1, _DRAWN_AT_ONCE // images)
    sums: list[list[np.ndarray]] = [[] for _ in tables]
    for first in range(0, resamples, block):
        rows = min(block, resamples - first)
        drawn = generator.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)
        for table, found in zip(tables, sums, strict=True):
            found.append(counts @ table.values)  # (rows, K)
    return [table.scores(np.concatenate(found), images) for table, found in zip(tables, sums, strict=True)]


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """The percentile interval that holds 95 % of the resamples' scores."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def p_value(difference: float, resampled: np.ndarray) -> float:
    """How often chance alone makes a difference as large, in either direction: two-sided, in 1 / (resamples + 1) .. 1.

    Resampled differences scatter around the observed one as observed ones scatter around the true one. Were the true
    one zero, they would
    scatter around zero: so the resamples are shifted by the observed difference (Efron and Tibshirani 1993, section
    16.4; Berg-Kirkpatrick et al. 2012), and counted where they are at least as far from zero as it. The observed one
    counts as a draw too (Davison and Hinkley 1997, section 4.2), so that p is never 0. Of a system and itself every
    difference is zero, and p is 1.

    Args:
        difference: of two systems' scores on the images.
        resampled: (resamples,) the same difference on resampled images.
    """
    as_far = np.abs(resampled - difference) >= abs(difference) - _ROUNDING
    return (1 + int(as_far.sum())) / (1 + len(resampled))
