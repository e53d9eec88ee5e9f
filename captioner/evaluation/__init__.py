"""The stage ``evaluate``: captions of held-out images, their scores, and images of where the decoder looked."""

from captioner.evaluation.evaluate import evaluate
from captioner.evaluation.summary import summary

__all__ = ["evaluate", "summary"]
