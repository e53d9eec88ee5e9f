"""CIDEr-D (Vedantam et al. 2015), as pycocoevalcap computes it. Document frequencies are those of the references."""

from __future__ import annotations

from captioner.metrics.metric import Corpus, Metric, MetricValues
from captioner.metrics.package import import_class


def _compute(corpus: Corpus) -> MetricValues:
    scorer = import_class("cider.cider", "Cider")()  # CIDEr-D, although pycocoevalcap calls it CIDEr
    references = dict(enumerate(corpus.references))
    candidates = {row: [text] for row, text in enumerate(corpus.candidates)}
    return MetricValues(*scorer.compute_score(references, candidates))


METRIC = Metric("cider_d", "CIDEr-D", _compute)
