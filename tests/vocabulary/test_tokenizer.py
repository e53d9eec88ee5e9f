"""The tokenizer against Stanford's PTBTokenizer without pycocoevalcap's punctuation."""

from __future__ import annotations

import json
import time

import pytest

from captioner.metrics.java import find_java
from captioner.metrics.ptb import ptb_tokenize
from captioner.vocabulary.tokenizer import PUNCTUATION, ptb_tokens, scored_tokens, tokenize
from tests.data import real_data


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [  # right: what CoreNLP 3.4.1 gives, as recorded
        ("A man's dog can't swim .", "a man 's dog ca n't swim"),
        ("They're in the dogs' house; I'm not, cannot.", "they 're in the dogs house i 'm not can not"),
        ("A black-and-white T-shirt, size 5:30 or 1,000.50!", "a black-and-white t-shirt size 5:30 or 1,000.50"),
        ("She's gonna “jump” — it’s 3/4 done…", "she 's gon na jump it 's 3/4 done"),
        ("rock 'n' roll at 7 o'clock, ma'am, y'all", "rock 'n' roll at 7 o'clock ma'am y' all"),
        ("Mr. Smith of the U.S. lives on St. Mark's at 5 p.m.", "mr. smith of the u.s. lives on st. mark 's at 5 p.m."),
        ("The cat sat. The AT&T sign is no. 5 & #1", "the cat sat the at&t sign is no 5 & # 1"),
        ("a sign (red) reads ``STOP'' or 'GO'", "a sign -lrb- red -rrb- reads stop or go"),
        ("£5, €5, $5, 5%, 5¢, ½ cup", "# 5 $ 5 $ 5 5 % 5 cents 1/2 cup"),
        ("café, Ñandú, 日本語, re\u0301", "café ñandú 日本語 re\u0301"),
        ("a 😀 dog😀cat", "a dog cat"),
        ("a \ufffd dog\ufffdcat", "a dog cat"),
        ("wow!! what?! no... well.... end--of -- it", "wow !! what ?! no well end of it"),
        ("line one\nline\ttwo\u2028three\x0bfour", "line one line two three four"),
        ("", ""),
        (" . , ! ", ""),
    ],
)
def test_recorded_tokens(caption: str, tokens: str) -> None:
    assert scored_tokens(caption) == tokens.split()
    assert tokenize(caption) == [token for token in tokens.split() if token not in ("-lrb-", "-rrb-")]


def test_only_punctuation_of_the_list_is_dropped() -> None:
    caption = "A dog, a \"cat\" -- and: a (red) bird; 'yes' ... no?"
    assert [token for token in ptb_tokens(caption) if token not in PUNCTUATION] == scored_tokens(caption)
    assert set(ptb_tokens(caption)) & PUNCTUATION >= {",", "''", "--", ":", ";", "'", "...", "?"}


def test_half_a_surrogate_pair_and_control_characters_are_no_words() -> None:
    assert tokenize("a \ud83d dog\x00 \x1b[31mred") == ["a", "dog", "31mred"]


def _share_of_equal_captions(captions: list[str]) -> float:
    java = find_java()
    if java is None:
        pytest.skip("no Java runs here")
    wanted = ptb_tokenize(captions, java)
    assert len(wanted) == len(captions)
    return sum(" ".join(scored_tokens(caption)) == line for caption, line in zip(captions, wanted)) / len(captions)


def test_agrees_with_java_on_the_golden_captions() -> None:
    folder = real_data("golden")
    captions = [
        row["caption"] for row in json.loads((folder / "captions_126_references.json").read_text())["annotations"]
    ]
    captions += [row["caption"] for row in json.loads((folder / "captions_126_results.json").read_text())]
    assert _share_of_equal_captions(captions) == 1.0
    assert all(tokenize(caption) == scored_tokens(caption) for caption in captions)


def test_agrees_with_java_on_flickr8k() -> None:
    lines = (real_data("flickr8k") / "Flickr8k_text" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    assert _share_of_equal_captions([line.split("\t", 1)[1] for line in lines]) >= 0.9995


@pytest.mark.parametrize(
    "piece", ["a", ".", "'", "#", "a'", "a.", "a-", "<a", "1,", "a@", "A&", "e\u0301", "http://", "n't", "+.", "[("]
)
def test_hostile_captions_take_linear_time(piece: str) -> None:
    start = time.perf_counter()
    tokenize(piece * 20_000)
    assert time.perf_counter() - start < 5


# As in captions of Flickr8k and COCO
NLTK_DIFFERS = [
    "They stand in the deep snow. The trees are white.",
    "A tea cup full of tea..",
    "A child is sliding down a slip 'n' slide .",
    "A crowd in Washington D.C.",
    "two young children RIF=ding sleds",
    "An ant 's-eye-view of people",
    "a sign that says “jump”",
]


def test_nltks_tokenizer_gives_other_tokens() -> None:
    """Why it is not used: it agrees with PTBTokenizer on plain captions, but not on these, where ours does."""
    nltk = pytest.importorskip("nltk.tokenize")
    tokenizer, marks = nltk.NLTKWordTokenizer(), {*PUNCTUATION, *"()[]{}"}

    def nltk_tokens(caption: str) -> list[str]:
        return [token for token in map(str.lower, tokenizer.tokenize(caption)) if token not in marks]

    for caption in ("A man's dog can't swim.", "Two dogs (black-and-white) aren't gonna run 5:30, 1,000 ..."):
        assert nltk_tokens(caption) == tokenize(caption)
    for caption in NLTK_DIFFERS:
        assert nltk_tokens(caption) != tokenize(caption), caption
    java = find_java()
    if java:
        assert ptb_tokenize(NLTK_DIFFERS, java) == [" ".join(scored_tokens(caption)) for caption in NLTK_DIFFERS]
