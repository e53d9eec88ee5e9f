"""Per-image statistics: their sums give every metric of any selection of images, without Java or captions.

BLEU (Papineni et al. 2002) and METEOR (Denkowski and Lavie 2014) of a corpus are not means of per-image scores; they
are functions of sums over images. Most other metrics are means. With one row of statistics per image, the scores of a
bootstrap resample are those of its summed rows.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from captioner.errors import CaptionerError
from captioner.metrics.metric import Metric, MetricValues
from captioner.metrics.registry import METRICS

STATISTICS = "statistics.json"  # the file's name in the results of an evaluation


@dataclass(frozen=True)
class Statistics:
    """One row per image.

    Attributes:
        image_ids: (N,) ids as text.
        columns: (K,) names of the columns, see ``Metric.columns``; those of metrics that were not computed are absent.
        values: (N, K) float64.
    """

    image_ids: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray

    def scores(self, sums: np.ndarray, images: int) -> dict[str, np.ndarray]:
        """Metrics of summed rows.

        Args:
            sums: (..., K) sums over ``images`` rows, each row counted as often as it was drawn.

        Returns:
            metric -> (...) scores, in the order of the registry.
        """
        column = {name: sums[..., index] for index, name in enumerate(self.columns)}
        return {metric.name: metric.from_sums(column, images) for metric in _metrics_of(self.columns)}

    def join(self, other: Statistics) -> Statistics:
        """The columns of both, which are of the same images, in the order of the registry."""
        column = dict(zip((*self.columns, *other.columns), np.concatenate([self.values, other.values], axis=1).T))
        columns = _columns_of(_metrics_of(tuple(column)))
        return Statistics(self.image_ids, columns, np.stack([column[name] for name in columns], axis=1))

    def overall(self) -> dict[str, float]:
        """Metrics of all images together."""
        return {name: float(value) for name, value in self.scores(self.values.sum(0), len(self.values)).items()}

    def to_json(self) -> str:
        """``image_id`` and every column as a list, a line each; floats are written so that they read back the same.

        Columns and not rows, which DVC would plot.
        """
        columns = {"image_id": list(self.image_ids)} | {
            name: [int(value) if value.is_integer() else value for value in column]
            for name, column in zip(self.columns, self.values.T.tolist(), strict=True)
        }
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in columns.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Statistics:
        """What ``to_json`` wrote.

        Args:
            name: of the file, for messages.

        Raises:
            CaptionerError: it is no such table.
        """
        try:
            content = json.loads(text)
            image_ids = content.pop("image_id")
            columns = tuple(content)
            if not columns or columns != _columns_of(_metrics_of(columns)):
                raise ValueError("unknown columns")
            values = np.array(list(content.values()), dtype=np.float64).T
            if values.shape != (len(image_ids), len(columns)) or not len(values) or not np.isfinite(values).all():
                raise ValueError("it has no image, a column of another length or a number that is not finite")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CaptionerError(f"{name}: no table of statistics ({error}); run the evaluate stage again") from error
        return cls(tuple(map(str, image_ids)), columns, values)


def make_statistics(image_ids: Sequence[Hashable], values: Mapping[str, MetricValues]) -> Statistics:
    """The statistics of metrics that were computed on the same images.

    Args:
        values: metric name -> values; of metrics that share columns one is enough.
    """
    columns: list[str] = []
    tables: list[np.ndarray] = []
    for metric in METRICS.values():
        if metric.name not in values or set(metric.statistics_columns) <= set(columns):
            continue
        found = values[metric.name]
        table = np.array(found.per_image)[:, None] if found.statistics is None else found.statistics
        columns.extend(metric.statistics_columns)
        tables.append(np.asarray(table, dtype=np.float64))
    return Statistics(tuple(map(str, image_ids)), tuple(columns), np.concatenate(tables, axis=1))


def _metrics_of(columns: Sequence[str]) -> list[Metric]:
    """The metrics whose statistics are all there."""
    return [metric for metric in METRICS.values() if set(metric.statistics_columns) <= set(columns)]


def _columns_of(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """The columns of these metrics, each once, in the order of a file."""
    return tuple(dict.fromkeys(column for metric in metrics for column in metric.statistics_columns))
