"""Settings with their scores, and pairs of settings: what the tables show."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from captioner.comparison.bootstrap import RESAMPLES, interval, p_value, resample
from captioner.comparison.experiments import Run
from captioner.metrics.registry import factor

SHOWN = ("encoder", "decoder", "attention")  # parameters with a column of their own


@dataclass(frozen=True)
class Score:
    """One metric of one setting, in the unit that tables show: percent, or as ``Metric.percent`` says.

    Attributes:
        value: the mean over the seeds of the score on all images.
        low, high: 95 % bootstrap interval of it, over images.
        spread: standard deviation over the seeds (of a sample: divided by their number less one); None of a single one.
    """

    value: float
    low: float
    high: float
    spread: float | None


@dataclass(frozen=True)
class Setting:
    """Runs that differ by their seed alone.

    Attributes:
        names: of each run, the names of its revisions.
        parameters: encoder, decoder, attention.
        others: what else tells it from the other settings: parameters, and code or data by the beginning of their hash.
        seeds: of each run.
        scores: metric -> score.
    """

    names: tuple[tuple[str, ...], ...]
    parameters: Mapping[str, Any]
    others: Mapping[str, Any]
    seeds: tuple[Any, ...]
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Difference:
    """Of one metric: the second setting's score less the first's, its 95 % interval, and the paired bootstrap's
    p-value."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Pair:
    """Two settings by their place in the list, and metric -> difference."""

    first: int
    second: int
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` gives.

    Attributes:
        metrics: their names, in order.
        signature: what all scores depend on.
        resamples: of the images.
        settings, pairs: in the order of the runs.
    """

    metrics: tuple[str, ...]
    signature: Mapping[str, Any]
    resamples: int
    settings: tuple[Setting, ...]
    pairs: tuple[Pair, ...]


def compare(runs: Sequence[Run], resamples: int = RESAMPLES) -> Comparison:
    """Scores of every setting and differences of every pair of them, on one set of resampled images.

    The score of a setting with several seeds is the mean of its runs' scores, on the images and on each resample.
    Intervals and p-values so say what other images would change, of these trained models; what other seeds would
    change, the spread over the seeds says.

    Args:
        runs: of the same images in the same order.
    """
    settings = _settings(runs)
    observed = [run.statistics.overall() for run in runs]
    resampled = resample([run.statistics for run in runs], resamples)
    metrics = tuple(
        name for name in observed[0] if all(name in scores for scores in observed)
    )  # SPICE may be some runs' alone
    values = [
        {metric: factor(metric) * np.array([observed[run][metric] for run in members]) for metric in metrics}
        for members in settings
    ]
    draws = [
        {metric: factor(metric) * np.mean([resampled[run][metric] for run in members], axis=0) for metric in metrics}
        for members in settings
    ]
    others = _others([runs[members[0]] for members in settings])
    found = []
    for members, scores, drawn, other in zip(settings, values, draws, others, strict=True):
        first = runs[members[0]]
        found.append(
            Setting(
                names=tuple(runs[run].names for run in members),
                parameters={name: first.parameters.get(name) for name in SHOWN},
                others=other,
                seeds=tuple(runs[run].seed for run in members),
                scores={metric: _score(scores[metric], drawn[metric]) for metric in metrics},
            )
        )
    pairs = []
    for a, b in itertools.combinations(range(len(settings)), 2):
        differences = {}
        for metric in metrics:
            value, drawn = (
                float(values[b][metric].mean() - values[a][metric].mean()),
                draws[b][metric] - draws[a][metric],
            )
            differences[metric] = Difference(value, *interval(drawn), p_value(value, drawn))
        pairs.append(Pair(a, b, differences))
    return Comparison(metrics, runs[0].signature, resamples, tuple(found), tuple(pairs))


def _score(values: np.ndarray, drawn: np.ndarray) -> Score:
    return Score(float(values.mean()), *interval(drawn), float(values.std(ddof=1)) if len(values) > 1 else None)


def _settings(runs: Sequence[Run]) -> list[list[int]]:
    """Places of the runs of each setting: alike in everything but the seed."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(json.dumps([run.parameters, run.code], sort_keys=True, default=str), []).append(index)
    return list(groups.values())


def _others(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of one run of each setting, what varies among them and has no column of its own; absent parameters are left out.

    Code and data are named only where the parameters do not tell two settings apart: most of them follow from the
        parameters.
    """
    names = sorted({name for run in runs for name in run.parameters if name not in SHOWN})
    varying = [name for name in names if any(_value(run, name) != _value(runs[0], name) for run in runs)]
    found = []
    for run in runs:
        other = {name: run.parameters[name] for name in varying if name in run.parameters}
        twins = [twin for twin in runs if twin.parameters == run.parameters]
        paths = [path for path in sorted(run.code) if any(twin.code.get(path) != run.code[path] for twin in twins)]
        found.append(other | {path: run.code[path][:7] for path in paths})
    return found


def _value(run: Run, name: str) -> str:
    """A parameter's value as text; a parameter that is absent has another than any that is there."""
    return json.dumps(run.parameters[name], default=str) if name in run.parameters else ""
