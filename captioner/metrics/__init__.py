"""Scores of captions against references: BLEU, METEOR, ROUGE-L, CIDEr-D."""

from captioner.metrics.scores import METRICS, References, Scorer, Scores, score

__all__ = ["METRICS", "References", "Scorer", "Scores", "score"]
