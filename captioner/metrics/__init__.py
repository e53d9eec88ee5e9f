"""Scores of captions against references: BLEU, METEOR, ROUGE-L, CIDEr-D."""

from captioner.metrics.scores import METRICS, Scores, score

__all__ = ["METRICS", "Scores", "score"]
