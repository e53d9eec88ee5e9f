"""All metrics. The scorer, the files of an evaluation, ``captioner compare`` and the report read names and titles here.

A new metric is one file that makes a ``Metric``, and its row below. Order here is the order in every file and table.
"""

from __future__ import annotations

from captioner.metrics import bleu, cider, meteor, rouge, spice
from captioner.metrics.metric import Metric

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*bleu.METRICS, meteor.METRIC, rouge.METRIC, cider.METRIC, spice.METRIC)
}
# computed with teacher forcing, without a search
TEACHER_FORCING = {"cross_entropy": "cross entropy", "token_accuracy": "token accuracy"}


def titles() -> dict[str, str]:
    """Name -> title of every metric, those of teacher forcing last."""
    return {name: metric.title for name, metric in METRICS.items()} | TEACHER_FORCING
