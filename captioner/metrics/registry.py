"""All metrics. The scorer, the files of an evaluation, ``captioner compare`` and the report read names and titles here.

A new metric is one file that makes a ``Metric``, and its row below. Order here is the order in every file and table.
"""

from __future__ import annotations

from captioner.metrics import bleu, cider, meteor, rouge, spice
from captioner.metrics.diversity import DIVERSITY
from captioner.metrics.metric import Metric

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*bleu.METRICS, meteor.METRIC, rouge.METRIC, cider.METRIC, spice.METRIC)
}
# computed with teacher forcing, without a search
TEACHER_FORCING = {"cross_entropy": "cross entropy", "token_accuracy": "token accuracy"}
_FRACTIONS = ("token_accuracy", "distinct_1", "distinct_2", "vocabulary_used", "novel")  # besides METRICS


def titles() -> dict[str, str]:
    """Name -> title of every metric, those of teacher forcing last."""
    return {name: metric.title for name, metric in METRICS.items()} | TEACHER_FORCING


def factor(name: str) -> int:
    """What a metric is multiplied with where it leaves the program: 100 for a fraction, which is shown as a percentage
    (BLEU-4 72.3, CIDEr-D 427.2); 1 for nats, words and counts.

    Code computes with fractions, as pycocoevalcap does; every file, table, page and line of output has percentages.
    """
    metric = METRICS.get(name)
    return 100 if (metric.percent if metric else name in _FRACTIONS) else 1


def percentages() -> list[str]:
    """The names of all metrics that are shown as percentages."""
    return [name for name in (*METRICS, *TEACHER_FORCING, *DIVERSITY) if factor(name) == 100]
