"""N-grams of captions as 64-bit numbers, and in how many images' captions each one occurs.

An n-gram of up to four words is its ids side by side, 16 bits each, so no two share a number. No word has id 0 (that is
padding), so an n-gram's first word says where it begins: those of n words are smaller than those of n + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from captioner.errors import CaptionerError
from captioner.vocabulary.vocabulary import PAD

LONGEST = 4
_BITS = 16


def ngrams(words: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The n-grams of captions, for n = 1 to 4.

    Args:
        words: (M, T) int64 ids, PAD after each caption's last.

    Yields:
        Which caption each n-gram stands in, (N,) int64 rising, and its number, (N,) uint64; as often as it occurs.

    Raises:
        CaptionerError: an id needs more than 16 bits.
    """
    row, column = np.nonzero(words != PAD)
    flat = words[row, column]
    if len(flat) and flat.max() >> _BITS:
        raise CaptionerError(
            f"vocabulary: rewards of captions know {1 << _BITS} words, and one has the id {flat.max()}; raise "
            "vocab.min_count"
        )
    flat = flat.astype(np.uint64)
    packed = flat
    for more in range(LONGEST):
        if more:
            packed = packed[:-1] << _BITS | flat[more:]
        within = row[: len(packed)] == row[more:]  # the last word stands in the caption of the first
        yield row[: len(packed)][within], packed[within]


def ngram_sizes(numbers: np.ndarray) -> np.ndarray:
    """n of each n-gram, (N,) uint64 -> (N,) int64."""
    return (
        np.searchsorted(
            np.array([1 << _BITS * size for size in range(1, LONGEST)], dtype=np.uint64), numbers, side="right"
        )
        + 1
    )


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many documents, a image's references each, an n-gram occurs.

    Attributes:
        numbers: (G,) uint64, n-grams, rising.
        counts: (G,) int32, documents with each.
        documents: how many there are.
    """

    numbers: np.ndarray
    counts: np.ndarray
    documents: int

    @classmethod
    def of(cls, words: np.ndarray, image: np.ndarray) -> DocumentFrequencies:
        """Count.

        Args:
            words: (M, T) int64 ids of the references, PAD after each one's last.
            image: (M,) int64, the image of each.

        Raises:
            CaptionerError: an id needs more than 16 bits.
        """
        numbers, counts = [], []
        for row, number in ngrams(words):
            owner = image[row]
            order = np.lexsort((owner, number))
            number, owner = number[order], owner[order]
            number = number[_differs(number) | _differs(owner)]  # once for each image
            first = np.flatnonzero(_differs(number))
            numbers.append(number[first])
            counts.append(np.diff(first, append=len(number)).astype(np.int32))
        return cls(np.concatenate(numbers), np.concatenate(counts), len(np.unique(image)))

    def idf(self, numbers: np.ndarray) -> np.ndarray:
        """log(documents / document frequency) of n-grams (N,), float64; one that no document has counts as in one.

        Exactly 0 for what stands in every document, as <end> does.
        """
        index = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.log(self.documents / np.where(self.numbers[index] == numbers, self.counts[index], 1))


def _differs(values: np.ndarray) -> np.ndarray:
    """Where an entry is another than the one before it; the first is."""
    return np.concatenate([np.ones(min(len(values), 1), dtype=bool), values[1:] != values[:-1]])
