"""Rewards against pycocoevalcap 1.2 on the same tokens, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer

from captioner.batches import CaptionTable
from captioner.errors import CaptionerError
from captioner.metrics.ngrams import DocumentFrequencies, ngram_sizes, ngrams
from captioner.metrics.reward import CaptionReward, Matches, bleu_4, cider_d
from captioner.vocabulary.vocabulary import END, START

A, B, C, D = 4, 5, 6, 65535


def table(captions: list[list[list[int]]]) -> np.ndarray:
    """Words of captions (with END or without) of each image -> (I, K, T + 1) rows, PAD where an image has fewer."""
    tokens = np.zeros(
        (len(captions), max(map(len, captions)), 1 + max(len(one) for group in captions for one in group)),
        dtype=np.int64,
    )
    for i, group in enumerate(captions):
        for k, one in enumerate(group):
            tokens[i, k, : len(one) + 1] = [START, *one]
    return tokens


def caption_table(references: list[list[list[int]]]) -> CaptionTable:
    """As CaptionTable.build makes it."""
    rows = table([[one for group in references for one in group]])[0]
    owners = [i for i, group in enumerate(references) for _ in group]
    return CaptionTable(np.arange(len(references)), np.concatenate([rows, np.zeros_like(rows[:1])]), np.array(owners))


def random_captions(
    generator: np.random.Generator, images: int, low: int, high: int, shortest: int, longest: int, words: int
) -> list[list[list[int]]]:
    """Between low and high captions an image; few words, so that n-grams repeat within a caption; a tenth lacks
    END."""
    groups = []
    for _ in range(images):
        group = []
        for _ in range(generator.integers(low, high + 1)):
            own = generator.choice(
                [A, B, C, D, *range(100, 100 + words)], generator.integers(shortest, longest + 1)
            ).tolist()
            group.append(own if own and generator.random() < 0.1 else [*own, END])
        groups.append(group)
    return groups


def text(words: list[int]) -> str:
    return " ".join(map(str, words))


def theirs(captions: list[list[list[int]]], references: list[list[list[int]]], sample: int, scorer) -> list[float]:
    """pycocoevalcap's score of one caption of each image."""
    for group, truth in zip(captions, references):
        scorer += (text(group[sample]), [text(one) for one in truth])
    if isinstance(scorer, BleuScorer):
        return scorer.compute_score(option="closest")[1][3]
    return scorer.compute_score()[1].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("words", [0, 3, 40])
def test_equals_pycocoevalcap(seed: int, words: int) -> None:
    """Words that repeat, empty captions, captions of one word, captions and references shorter than n, unequal numbers
    of references."""
    generator = np.random.default_rng([seed, words])
    references = random_captions(generator, 12, 1, 5, 1, 9, words)
    captions = random_captions(generator, 12, 4, 4, 0, 11, words)
    references[1][0] = [A, B, C, D, A, B, END]
    captions[0] = [[END], [], [A], [A, END]]
    captions[1] = [references[1][0], references[1][-1], [A, A, A, A, A, A, END], [A, END, END]]
    matches = Matches.of(table(captions), table(references))
    reward = CaptionReward(caption_table(references))
    cider, bleu = cider_d(matches, reward.frequencies), bleu_4(matches)
    assert cider.shape == bleu.shape == (12, 4)
    for sample in range(4):
        assert cider[:, sample].tolist() == pytest.approx(theirs(captions, references, sample, CiderScorer()), abs=1e-9)
        assert bleu[:, sample].tolist() == pytest.approx(theirs(captions, references, sample, BleuScorer()), abs=1e-9)
    assert cider.max() > 1 and bleu.max() > 0.9  # there was something to score


def test_a_batch_has_the_document_frequencies_of_all_training_images() -> None:
    """Three images of thirty get what they get when all thirty are scored, n-grams that no reference has included."""
    generator = np.random.default_rng(0)
    references = random_captions(generator, 30, 2, 5, 1, 9, 10)
    captions = random_captions(generator, 30, 1, 1, 1, 9, 12)
    reward = CaptionReward(caption_table(references))
    expected = theirs(captions, references, 0, CiderScorer())
    found = reward(table(captions[7:10]), table(references[7:10]))
    assert found[:, 0].tolist() == pytest.approx(expected[7:10], abs=1e-9)


def test_cider_d_by_hand() -> None:
    """Two images, one word each: log(2 / 1) is every weight but that of END, which both have."""
    references = [[[A, END]], [[B, END]]]
    reward = CaptionReward(caption_table(references))
    found = reward(table([[[A, END], [A, A, END], [B, END], [END]]]), table(references[:1]))
    # [A, A, END] holds A twice (cosine 2 clipped to 1, over 2 * 1), AA and A END (cosine 1 / sqrt(2)), and is one
    # bigram longer
    second = 10 / 4 * (1 / 2 + 1 / math.sqrt(2)) * math.exp(-1 / 72)
    assert found[0].tolist() == pytest.approx([10 / 4 * 2, second, 0, 0])


def test_weight_of_bleu_4() -> None:
    generator = np.random.default_rng(1)
    references, captions = random_captions(generator, 6, 2, 3, 2, 8, 0), random_captions(generator, 6, 3, 3, 2, 8, 0)
    cider, bleu = (theirs(captions, references, 2, scorer) for scorer in (CiderScorer(), BleuScorer()))
    for weight in (0.0, 3.0):
        found = CaptionReward(caption_table(references), weight)(table(captions), table(references))
        assert found[:, 2].tolist() == pytest.approx([one + weight * two for one, two in zip(cider, bleu)])


def test_document_frequencies_count_images() -> None:
    frequencies = caption_table([[[A, A, B, END], [A, END]], [[A, B, END]], [[B, END]]])
    counted = DocumentFrequencies.of(frequencies.tokens[:-1, 1:], frequencies.image)
    two = 1 << 16
    numbers = np.array([A, B, END, A * two + B, A * two + A, (A * two + B) * two + END, C], dtype=np.uint64)
    assert counted.documents == 3
    assert np.exp(counted.idf(numbers)).tolist() == pytest.approx([3 / 2, 1, 1, 3 / 2, 3, 3 / 2, 3])
    assert counted.idf(numbers)[[1, 2]].tolist() == [0, 0]  # not nearly: a norm of 1e-16 would make a cosine of 1


def test_ngrams_are_distinct_up_to_the_largest_id() -> None:
    captions = np.array([[D, D, D, D], [D, D, D, D - 1], [0, 0, 0, 0], [A, D, 0, 0]])
    found = [(rows.tolist(), numbers.tolist()) for rows, numbers in ngrams(captions)]
    two = 1 << 16
    assert found[0] == ([0] * 4 + [1] * 4 + [3] * 2, [D] * 7 + [D - 1, A, D])
    assert found[1] == ([0] * 3 + [1] * 3 + [3], [D * two + D] * 5 + [D * two + D - 1, A * two + D])
    assert found[3] == ([0, 1], [2**64 - 1, 2**64 - 2])
    for size, (_, numbers) in enumerate(found, 1):
        assert (ngram_sizes(np.array(numbers, dtype=np.uint64)) == size).all()


def test_too_large_a_vocabulary_is_an_error() -> None:
    with pytest.raises(CaptionerError, match="65536.*vocab.min_count"):
        CaptionReward(caption_table([[[A, D + 1, END]]]))
