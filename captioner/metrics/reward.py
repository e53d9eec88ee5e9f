"""CIDEr-D and BLEU-4 of sampled captions against their images' references, on word ids, for a whole batch at once.

Both equal pycocoevalcap 1.2's scores of single captions, given the same tokens and document frequencies. <end> is a
token of every
caption that has one: without it, captions that break off ("a man on a") pay nothing for their endings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from captioner.batches import CaptionTable
from captioner.metrics.ngrams import LONGEST, DocumentFrequencies, ngram_sizes, ngrams
from captioner.vocabulary.vocabulary import PAD

_SIGMA = 6.0  # of CIDEr-D's length penalty
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's smoothing of BLEU


class CaptionReward:
    """What a sampled caption is worth: CIDEr-D (0 to 10) + ``bleu_weight`` * BLEU-4 (0 to 1).

    Args:
        references: the training captions; CIDEr-D takes its document frequencies from them.
        bleu_weight: 0: BLEU-4 is not computed.

    Raises:
        CaptionerError: more than 65,536 words.
    """

    def __init__(self, references: CaptionTable, bleu_weight: float = 0.0) -> None:
        self.frequencies = DocumentFrequencies.of(references.tokens[:-1, 1:], references.image)
        self.bleu_weight = bleu_weight

    def __call__(self, captions: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Score captions (I, S, T + 1) by references (I, R, L + 1), both int64: START, words, END where there is one,
        PAD.

        Every image has at least one reference; rows of PAD alone fill up those with fewer than R.

        Returns:
            (I, S) float64.
        """
        matches = Matches.of(captions, references)
        score = cider_d(matches, self.frequencies)
        return score + self.bleu_weight * bleu_4(matches) if self.bleu_weight else score


@dataclass(frozen=True)
class Matches:
    """The n-grams of H = I * S captions and of I * R references, and how often each caption's stand in its references.

    Attributes:
        images: I.
        numbers: (G,) uint64, every n-gram of the batch.
        row: (N,) int64, rising; an entry is an n-gram of a text. Captions are texts 0 to H - 1, references follow.
        gram: (N,) int64, which of ``numbers`` it is.
        count: (N,) int64, how often it occurs in its text.
        found: (N', R) int64, for the first N' entries, those of captions: how often it occurs in each of the image's
            references.
        lengths: (H, 1) int64, tokens of each caption.
        reference_lengths: (H, R) int64, tokens of its image's references; 0: no reference.
    """

    images: int
    numbers: np.ndarray
    row: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    found: np.ndarray
    lengths: np.ndarray
    reference_lengths: np.ndarray

    @classmethod
    def of(cls, captions: np.ndarray, references: np.ndarray) -> Matches:
        """Captions (I, S, T + 1), references (I, R, L + 1), as ``CaptionReward`` takes them."""
        (images, samples, _), each = captions.shape, references.shape[1]
        words, truth = (table[:, :, 1:].reshape(-1, table.shape[2] - 1) for table in (captions, references))
        total = len(words)
        parts = [*ngrams(words), *((row + total, number) for row, number in ngrams(truth))]
        numbers, gram = np.unique(np.concatenate([number for _, number in parts]), return_inverse=True)
        row = np.concatenate([row for row, _ in parts])
        entries, count = np.unique(row * len(numbers) + gram, return_counts=True)
        row, gram = np.divmod(entries, max(len(numbers), 1))
        own = np.searchsorted(row, total)
        against = total + row[:own, None] // samples * each + np.arange(each)  # (N', R) the texts to look into
        wanted = against * len(numbers) + gram[:own, None]
        position = np.minimum(np.searchsorted(entries, wanted), len(entries) - 1)
        found = np.where(entries[position] == wanted, count[position], 0)
        lengths, reference_lengths = (words != PAD).sum(1), (truth != PAD).sum(1).reshape(images, each)
        return cls(
            images, numbers, row, gram, count, found, lengths[:, None], reference_lengths.repeat(samples, axis=0)
        )


def cider_d(matches: Matches, frequencies: DocumentFrequencies) -> np.ndarray:
    """CIDEr-D of each caption, (I, S) float64 (Vedantam et al. 2015, section 5: clipped counts, Gaussian penalty, times
    10)."""
    total, each = matches.reference_lengths.shape
    idf, size = frequencies.idf(matches.numbers), ngram_sizes(matches.numbers) - 1
    own = len(matches.found)
    cell = matches.row * LONGEST + size[matches.gram]  # (N,) text and n
    texts = total + matches.images * each
    norms = np.sqrt(np.bincount(cell, (matches.count * idf[matches.gram]) ** 2, texts * LONGEST)).reshape(
        texts, LONGEST
    )
    clipped = np.minimum(matches.count[:own, None], matches.found) * matches.found
    products = _sum_cells(cell[:own], clipped * (idf**2)[matches.gram[:own], None], total)  # (H, 4, R)
    theirs = norms[total:].reshape(matches.images, each, LONGEST).transpose(0, 2, 1)  # (I, 4, R)
    scale = norms[:total, :, None] * theirs.repeat(total // matches.images, axis=0)
    cosine = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    # pycocoevalcap takes the number of bigrams for the length
    delta = np.maximum(matches.lengths - 1, 0) - np.maximum(matches.reference_lengths - 1, 0)  # (H, R)
    penalised = cosine.mean(1) * np.exp(-(delta**2) / (2 * _SIGMA**2))
    scores = 10 * penalised.sum(1) / (matches.reference_lengths > 0).sum(1)
    return scores.reshape(matches.images, -1)


def bleu_4(matches: Matches) -> np.ndarray:
    """BLEU-4 of each caption by itself, (I, S) float64, with pycocoevalcap's smoothing and the closest reference's
    length."""
    total = len(matches.lengths)
    own = len(matches.found)
    cell = matches.row[:own] * LONGEST + ngram_sizes(matches.numbers)[matches.gram[:own]] - 1
    clipped = np.minimum(matches.count[:own], matches.found.max(1))
    correct = np.bincount(cell, clipped, total * LONGEST).reshape(total, LONGEST)
    guessed = np.maximum(matches.lengths - np.arange(LONGEST), 0)
    precision = ((correct + _TINY) / (guessed + _SMALL)).prod(1) ** (1 / LONGEST)
    distance = np.where(
        matches.reference_lengths > 0, np.abs(matches.reference_lengths - matches.lengths), np.iinfo(np.int64).max
    )
    tied = distance == distance.min(1, keepdims=True)
    closest = np.where(tied, matches.reference_lengths, np.iinfo(np.int64).max).min(
        1
    )  # of equally close ones the shortest
    ratio = (matches.lengths[:, 0] + _TINY) / (closest + _SMALL)
    return (precision * np.exp(np.minimum(1 - 1 / ratio, 0))).reshape(matches.images, -1)


def _sum_cells(cell: np.ndarray, values: np.ndarray, texts: int) -> np.ndarray:
    """Sum values (N', R) by the cell of each row -> (texts, 4, R)."""
    width = values.shape[1]
    index = cell[:, None] * width + np.arange(width)
    return np.bincount(index.ravel(), values.ravel(), texts * LONGEST * width).reshape(texts, LONGEST, width)
