"""Distinct n-grams, words used, novel captions and length, by hand."""

from __future__ import annotations

import pytest

from captioner.metrics.diversity import DIVERSITY, TrainingCaptions, diversity


def test_by_hand():
    """Words: a dog runs / a dog / a red dog runs: 9, of which a, dog, runs, red are different. Pairs: a-dog dog-runs /
    a-dog / a-red red-dog dog-runs: 6, of which a-dog, dog-runs, a-red, red-dog are different."""
    training = TrainingCaptions.of(["A dog runs.", "a cat runs"])
    found = diversity(["a dog runs", "a dog", "a red dog runs"], training, 20)
    assert found == pytest.approx(
        {
            "distinct_1": 4 / 9,
            "distinct_2": 4 / 6,
            "words_used": 4,
            "vocabulary_used": 4 / 20,
            "novel": 2 / 3,
            "caption_length": 3.0,
        }
    )
    assert list(found) == list(DIVERSITY)


def test_the_same_caption_again_and_again():
    """Three words and two pairs, ten times; the pair across two captions is none."""
    found = diversity(["two big dogs"] * 10, TrainingCaptions.of(["two big dogs"]), 3)
    assert found == pytest.approx(
        {
            "distinct_1": 3 / 30,
            "distinct_2": 2 / 20,
            "words_used": 3,
            "vocabulary_used": 1.0,
            "novel": 0.0,
            "caption_length": 3.0,
        }
    )


def test_both_sides_are_tokenized_alike():
    """A caption of the model is words joined with spaces, the training caption is as written: "man's" is two words on
    both sides."""
    assert diversity(["a man 's dog ca n't swim"], TrainingCaptions.of(["A man's dog can't swim!"]), 9)["novel"] == 0.0


def test_nothing_said():
    assert set(diversity(["", ""], TrainingCaptions.of([]), 9).values()) == {0.0, 1.0}  # they are novel
    assert diversity(["dog"], TrainingCaptions.of([]), 9)["distinct_2"] == 0.0
