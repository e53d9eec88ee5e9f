"""Scores known from the papers or by hand, and captions that are out of the ordinary."""

from __future__ import annotations

import math

import pytest

from captioner.errors import CaptionerError
from captioner.metrics import Scorer, score


@pytest.fixture(autouse=True)
def _own_tokens(request) -> None:
    """No Java for the simple cases: quick."""
    if "packaged_scorer" not in request.fixturenames:
        request.getfixturevalue("no_java")


def test_bleu_from_counts_alone() -> None:
    """The formula of the scorer that is used, fed with the counts of a published run: BLEU .579 .404 .279 .191."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    scorer.crefs = [None]
    scorer.ctest = [
        {"testlen": 9893, "reflen": [9855], "guess": [9893, 8893, 7893, 6893], "correct": [5732, 2510, 1043, 423]}
    ]
    bleu, _ = scorer.compute_score(option="closest")
    assert bleu == pytest.approx([0.579, 0.404, 0.279, 0.191], abs=0.0005)


def test_bleu_counts_an_n_gram_once_for_each_time_a_reference_has_it() -> None:
    """Papineni et al. 2002, example 2: 'the' is right twice of seven."""
    references = ["The cat is on the mat.", "There is a cat on the mat."]
    assert score({1: references}, {1: "the the the the the the the."}).overall["bleu_1"] == pytest.approx(2 / 7)


def test_bleu_by_hand() -> None:
    overall = score({1: ["the cat is on the mat"]}, {1: "the cat sat on the mat"}).overall
    # unigrams 5/6, bigrams 3/5, trigrams 1/4, 4-grams 0/3
    assert overall["bleu_1"] == pytest.approx(5 / 6)
    assert overall["bleu_2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    assert overall["bleu_3"] == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))
    assert overall["bleu_4"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("references", "length"),
    [(["a dog runs fast"], 4), (["a dog runs fast", "a dog on green grass"], 4), (["a dog runs fast", "a dog"], 2)],
)
def test_brevity_penalty_takes_the_closest_reference(references: list[str], length: int) -> None:
    assert score({1: references}, {1: "a dog"}).overall["bleu_1"] == pytest.approx(math.exp(min(0, 1 - length / 2)))


def test_rouge_l_by_hand() -> None:
    """Lin 2004, section 3: LCS 3 and 2 of 4 words; precision = recall."""
    references = {1: ["police killed the gunman"], 2: ["police killed the gunman"]}
    scores = score(references, {1: "police kill the gunman", 2: "the gunman kill police"})
    assert scores.per_image[1]["rouge_l"] == pytest.approx(3 / 4)
    assert scores.per_image[2]["rouge_l"] == pytest.approx(2 / 4)
    assert scores.overall["rouge_l"] == pytest.approx(5 / 8)


def test_rouge_l_takes_best_precision_and_best_recall() -> None:
    # precision 2/2 against the first, recall 1/1 against the second
    assert score({1: ["a b c d", "a"]}, {1: "a b"}).overall["rouge_l"] == pytest.approx(1)
    # precision 1/2, recall 1/4: (1 + 1.44) P R / (R + 1.44 P)
    assert score({1: ["a x y z"]}, {1: "a b"}).overall["rouge_l"] == pytest.approx(
        2.44 * 0.5 * 0.25 / (0.25 + 1.44 * 0.5)
    )


def test_cider_d_of_identical_captions_is_ten() -> None:
    captions = {1: "a dog runs on grass", 2: "two red birds sleep quietly", 3: "one ship sails far away"}
    overall = score({key: [text] for key, text in captions.items()}, captions).overall
    # "a" and so on occur in one image each, so that every n-gram weighs log 3: cosine 1 for n = 1..4, times 10
    assert overall["cider_d"] == pytest.approx(10)


def test_cider_d_by_hand() -> None:
    scores = score({1: ["red cat"], 2: ["blue dog"]}, {1: "red dog", 2: "blue dog"})
    # image 1: unigram vectors (1, 1) log 2 share one of two words: cosine 1/2; no bigram shared: 10 * (1/2) / 4
    assert scores.per_image[1]["cider_d"] == pytest.approx(10 * 0.5 / 4)
    # image 2: cosine 1 for unigrams and bigrams, nothing longer
    assert scores.per_image[2]["cider_d"] == pytest.approx(10 * 2 / 4)


def test_cider_d_of_a_single_image_is_zero() -> None:
    assert score({1: ["a dog runs on grass"]}, {1: "a dog runs on grass"}).overall["cider_d"] == 0


def test_empty_candidates_score_zero() -> None:
    scores = score({1: ["a dog"], 2: ["a cat"]}, {1: "", 2: " . "})
    assert scores.overall == pytest.approx(dict.fromkeys(scores.overall, 0), abs=1e-9)
    assert all(math.isfinite(value) for each in scores.per_image.values() for value in each.values())


def test_order_of_images_and_references_does_not_matter() -> None:
    references = {1: ["a dog", "the dog runs"], 2: ["a cat sits", "one cat"], 3: ["two birds"]}
    candidates = {1: "a dog runs", 2: "a cat", 3: "two dogs"}
    first = score(references, candidates)
    second = score({key: references[key][::-1] for key in (3, 1, 2)}, {key: candidates[key] for key in (2, 3, 1)})
    assert first.overall == pytest.approx(second.overall)
    assert {key: pytest.approx(each) for key, each in first.per_image.items()} == second.per_image


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ({}, {}, "there are none"),
        ({1: ["a"]}, {}, "without a caption to score: 1;"),
        ({1: ["a"], 7: ["b"], 8: ["c"]}, {1: "a"}, "without a caption to score: 7, 8;"),
        ({1: ["a"]}, {1: "a", "x\x1b": "b"}, r"without references: 'x\\x1b';"),
        ({key: ["a"] for key in range(20)}, {0: "a"}, "1, 2, 3, 4, 5 and 14 more"),
        ({1: []}, {1: "a"}, "without references: 1"),
        ({1: "a dog"}, {1: "a"}, "no text: 1"),
        ({1: ["a dog", None]}, {1: "a"}, "no text: 1"),
        ({1: ["a dog"]}, {1: None}, "no text: 1"),
        ({1: ["..."], 2: [""]}, {1: "a", 2: "b"}, "none of them has a word"),
    ],
)
def test_what_cannot_be_scored_is_named(references, candidates, message: str) -> None:
    with pytest.raises(CaptionerError, match=message):
        score(references, candidates)


def test_meteor_of_identical_and_of_foreign_captions(packaged_scorer: Scorer) -> None:
    """Denkowski and Lavie 2014: 1 for the same words in one chunk, 0 for no match."""
    scores = packaged_scorer.score(
        {1: ["a dog runs on the grass"], 2: ["a dog runs"]}, {1: "a dog runs on the grass", 2: "quantum zebra"}
    )
    assert scores.per_image[1]["meteor"] == pytest.approx(1)
    assert scores.per_image[2]["meteor"] == 0


def test_odd_captions_through_java_neither_hang_nor_shift(packaged_scorer: Scorer) -> None:
    odd = [
        "",
        " ",
        "a\nb\r\nc",
        "\u2028\u2029\x0b\x0c\x1c\x85",
        "say \"hi\" 'there' ``you''",
        "|||",
        "a ||| b ||| c",
        "SCORE ||| x ||| y",
        "EVAL ||| 1 2 3",
        "😀 🐶",
        "日本語 кот é ñ",
        "<b>bold</b> & &amp; <",
        "\x00\x01",
        "\ud800",
        "a" * 5000,
        "-" * 3000,
        "¿qué?",
        "%s %d \\n $HOME `id`",
        "a dog " * 50,
    ]
    references = {row: [text or "a dog", "a dog runs on the grass"] for row, text in enumerate(odd)}
    candidates = dict(enumerate(odd))
    references["last"], candidates["last"] = ["a dog runs on the grass"], "a dog runs on the grass"
    scores = packaged_scorer.score(references, candidates)
    assert scores.per_image["last"]["meteor"] == pytest.approx(1) and scores.per_image["last"][
        "bleu_4"
    ] == pytest.approx(1)
    assert all(0 <= value <= 10.0001 for each in scores.per_image.values() for value in each.values())


def test_captions_of_ten_thousand_words(packaged_scorer: Scorer) -> None:
    words = [f"word{row % 997}" for row in range(10_000)]
    scores = packaged_scorer.score(
        {1: ["a dog runs", "word1 word2 word3"], 2: [" ".join(words)]}, {1: " ".join(words), 2: "word5 word6 word7"}
    )
    assert scores.per_image[1]["bleu_1"] == pytest.approx(3 / 10_000)  # each of three words counts once
    assert scores.per_image[2]["rouge_l"] == pytest.approx(2.44 * 3 / 10_000 / (3 / 10_000 + 1.44))


def test_references_tokenized_once_give_the_same_scores() -> None:
    references = {1: ["A dog runs.", "The dog, running!"], 2: ["A cat sleeps on a mat."], 3: ["Two birds."]}
    scorer = Scorer(meteor=False)
    held = scorer.references(references)
    assert held.tokens == {1: ["a dog runs", "the dog running"], 2: ["a cat sleeps on a mat"], 3: ["two birds"]}
    for captions in ({1: "a dog runs", 2: "a cat on a mat", 3: "birds"}, {3: "two birds", 1: "the dog", 2: "a dog"}):
        assert scorer.score(held, captions) == score(references, captions, meteor=False)
    with pytest.raises(CaptionerError, match="images without a caption to score: 3"):
        scorer.score(held, {1: "a", 2: "b"})
