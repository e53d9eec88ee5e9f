"""ROUGE-L (Lin 2004) as COCO captions are scored: the best precision and the best recall over the references, F with
beta 1.2."""

from __future__ import annotations

from collections.abc import Sequence

BETA = 1.2


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, bit-parallel (Crochemore et al. 2001): one addition of len(a) bits for each word of ``b``."""
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    all_bits = (1 << len(a)) - 1
    row = all_bits
    for word in b:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & all_bits
    return len(a) - row.bit_count()


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """The score of one tokenized candidate, in 0..1; 0 where it is empty.

    The same as pycocoevalcap's, in linear memory: its table of cells takes gigabytes for captions of thousands of
    words.
    """
    words = candidate.split()
    common = [
        (longest_common_subsequence(words, reference), len(reference)) for reference in map(str.split, references)
    ]
    # pycocoevalcap splits at single spaces, which makes one empty word of an empty text: lengths are at least 1 here
    # too
    precision = max(length for length, _ in common) / max(len(words), 1)
    recall = max(length / max(of, 1) for length, of in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
