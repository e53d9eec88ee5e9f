"""ROUGE-L (Lin 2004) as used for COCO captions: F-score (beta 1.2) of the best precision and best recall over the
references."""

from __future__ import annotations

from collections.abc import Sequence

from captioner.metrics.metric import Corpus, Metric, MetricValues

BETA = 1.2


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, bit-parallel (Crochemore et al. 2001): one addition of len(a) bits for each word of ``b``."""
    positions: dict[str, int] = {}  # word -> bit mask of its positions in a
    for position, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << position
    all_bits = (1 << len(a)) - 1
    row = all_bits
    for word in b:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & all_bits
    return len(a) - row.bit_count()


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """The score of one tokenized candidate, in 0..1; 0 where it is empty.

    Equals pycocoevalcap's, but in linear memory: its table takes gigabytes for captions of thousands of words.
    """
    words = candidate.split()
    common = [
        (longest_common_subsequence(words, reference), len(reference)) for reference in map(str.split, references)
    ]
    # pycocoevalcap splits at single spaces, so an empty text has one empty word: lengths are at least 1 here too
    precision = max(length for length, _ in common) / max(len(words), 1)
    recall = max(length / max(of, 1) for length, of in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _compute(corpus: Corpus) -> MetricValues:
    pairs = zip(corpus.candidates, corpus.references, strict=True)
    return MetricValues.mean([rouge_l(candidate, references) for candidate, references in pairs])


METRIC = Metric("rouge_l", "ROUGE-L", _compute)
