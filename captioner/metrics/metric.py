"""What a metric is. A new metric is one file that makes a ``Metric``, and its row in ``captioner.metrics.registry``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from captioner.metrics.java import Java

T = TypeVar("T")


@dataclass(frozen=True)
class Corpus:
    """Tokenized captions of N images and their references.

    Attributes:
        candidates: (N,) the captions to score, tokens joined with spaces; may be empty.
        references: (N,) the references of each image, tokenized in the same way; at least one.
        programs: metric name -> its running program, for metrics with ``Metric.program``.
    """

    candidates: Sequence[str]
    references: Sequence[Sequence[str]]
    programs: Mapping[str, Any] = field(default_factory=dict)
    _results: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, compute: Callable[[Corpus], T]) -> T:
        """``compute(self)``, computed at the first call only: BLEU-1 to BLEU-4 share their n-gram counts."""
        if compute not in self._results:
            self._results[compute] = compute(self)
        return self._results[compute]


class MetricValues(NamedTuple):
    """Values of one metric.

    Attributes:
        corpus: of all captions together.
        per_image: (N,) of each caption.
        statistics: (N, K) per-image statistics, one column for each of ``Metric.columns``; None: ``per_image`` is the
            only column.
    """

    corpus: float
    per_image: Sequence[float]
    statistics: np.ndarray | None = None

    @classmethod
    def mean(cls, per_image: Sequence[float]) -> MetricValues:
        """Values of a metric whose corpus value is the mean over images."""
        return cls(sum(per_image) / len(per_image), per_image)


class Program(Protocol):
    """A running program that computes a metric."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Metric:
    """A metric of captions against references.

    Attributes:
        name: its key in ``metrics.json`` and its column in ``per_image.csv``.
        title: its name in tables, charts and pages.
        compute: corpus -> values.
        columns: names of the per-image statistics whose sums over images give the corpus value; empty: ``name``, the
            per-image values themselves. Metrics may share columns.
        combine: summed columns -> corpus value; None: the mean over images.
        program: starts the program that ``compute`` finds in ``Corpus.programs``; such a metric needs a Java, and runs
            in parallel to the others.
        version: name and version of the program, for the signature of the scores.
        english_only: knows English words; left out where the tokenizer is of other languages.
        slow: computed for the final captions only.
        percent: values are fractions, which files, tables and pages show times 100, as papers print them; False: as
            they are.
        available: whether it can be computed on this machine, asked for slow metrics.
    """

    name: str
    title: str
    compute: Callable[[Corpus], MetricValues]
    columns: tuple[str, ...] = ()
    combine: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None
    program: Callable[[Java], Program] | None = None
    version: str = ""
    english_only: bool = False
    slow: bool = False
    percent: bool = True
    available: Callable[[], bool] = lambda: True

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return self.columns or (self.name,)

    def from_sums(self, sums: Mapping[str, np.ndarray], images: int) -> np.ndarray:
        """The corpus value of any selection of images, from sums of their statistics.

        Args:
            sums: column -> (...) sums over the selected images.
            images: number of selected images.

        Returns:
            (...) values.
        """
        return self.combine(sums) if self.combine else sums[self.name] / images
