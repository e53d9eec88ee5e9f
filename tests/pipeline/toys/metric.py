"""A toy metric: the mean number of characters of a caption."""

from __future__ import annotations

from captioner.metrics import Corpus, Metric, MetricValues


def _compute(corpus: Corpus) -> MetricValues:
    return MetricValues.mean([len(caption) for caption in corpus.candidates])


METRIC = Metric("toy", "characters of a caption", _compute, percent=False)
