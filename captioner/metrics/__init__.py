"""Metrics of captions against references: BLEU, METEOR, ROUGE-L, CIDEr-D, SPICE."""

from captioner.metrics.metric import Corpus, Metric, MetricValues
from captioner.metrics.registry import METRICS
from captioner.metrics.scores import References, Scorer, Scores, score

__all__ = ["METRICS", "Corpus", "Metric", "MetricValues", "References", "Scorer", "Scores", "score"]
