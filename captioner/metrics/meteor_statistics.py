"""METEOR 1.5 from sums of per-image statistics (Denkowski and Lavie 2014; MeteorScorer.computeMetrics)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_MODULES = ("exact", "stem", "synonym", "paraphrase")
_KINDS = ("test_content", "reference_content", "test_function", "reference_function")
COLUMNS = (  # the order of the line that METEOR 1.5 prints for a caption (MeteorStats.toString)
    "meteor_test_length",
    "meteor_reference_length",
    "meteor_test_function_words",
    "meteor_reference_function_words",
    *(f"meteor_{module}_{kind}" for module in _MODULES for kind in _KINDS),
    "meteor_chunks",
    "meteor_test_matches",
    "meteor_reference_matches",
)
# METEOR 1.5's English parameters for the task "rank", the program's default (Constants.java)
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_MODULE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)


def statistics(lines: Sequence[Sequence[float]]) -> np.ndarray:
    """(N, 23) statistics, the columns of ``COLUMNS``, from the numbers that METEOR prints for each caption.

    A caption that equals a reference word for word has no fragmentation: METEOR leaves its one chunk out of sums
    (MeteorStats.addStats), so it is 0 here.
    """
    values = np.array(lines, dtype=np.float64)
    column = {name: values[:, index] for index, name in enumerate(COLUMNS)}
    whole = column["meteor_chunks"] == 1
    for side in ("test", "reference"):
        matches = sum(
            column[f"meteor_{module}_{side}_{kind}"] for module in _MODULES for kind in ("content", "function")
        )
        whole &= matches == column[f"meteor_{side}_length"]
    column["meteor_chunks"][whole] = 0
    return values


def combine(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """METEOR of summed statistics: the weighted mean of precision and recall, less fragmentation."""
    ratios = {}
    for side in ("test", "reference"):
        function = sums[f"meteor_{side}_function_words"]
        matches = np.zeros_like(function, dtype=np.float64)
        for module, weight in zip(_MODULES, _MODULE_WEIGHTS, strict=True):
            content, others = (sums[f"meteor_{module}_{side}_{kind}"] for kind in ("content", "function"))
            matches = matches + weight * (_DELTA * content + (1 - _DELTA) * others)
        length = _DELTA * (sums[f"meteor_{side}_length"] - function) + (1 - _DELTA) * function
        ratios[side] = _ratio(matches, length)
    precision, recall = ratios["test"], ratios["reference"]
    mean = _ratio(precision * recall, (1 - _ALPHA) * recall + _ALPHA * precision)
    fragmentation = _ratio(sums["meteor_chunks"], (sums["meteor_test_matches"] + sums["meteor_reference_matches"]) / 2)
    return mean * (1 - _GAMMA * fragmentation**_BETA)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator; 0 where the denominator is 0, as for captions without a word."""
    zeros = np.zeros_like(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=zeros, where=denominator != 0)
