"""Words, ids and the vocabulary file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.vocabulary.vocabulary import END, PAD, SPECIALS, START, UNK, Vocabulary, build_vocabulary

CAPTIONS = ["A dog runs.", "A dog sleeps.", "The cat runs!", "A bird"]


def test_words_stand_by_falling_count_then_alphabet() -> None:
    vocabulary = build_vocabulary(CAPTIONS, 1)
    assert vocabulary.words == [
        "<pad>",
        "<start>",
        "<end>",
        "<unk>",
        "a",
        "dog",
        "runs",
        "bird",
        "cat",
        "sleeps",
        "the",
    ]
    assert vocabulary.counts == [0, 0, 0, 0, 3, 2, 2, 1, 1, 1, 1]
    assert build_vocabulary(CAPTIONS, 2).words[4:] == ["a", "dog", "runs"]
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)


def test_order_of_captions_does_not_matter() -> None:
    shuffled = list(CAPTIONS)
    random.Random(1).shuffle(shuffled)
    assert build_vocabulary(shuffled).words == build_vocabulary(CAPTIONS).words


def test_encode_and_decode() -> None:
    vocabulary = build_vocabulary(CAPTIONS)
    assert vocabulary.encode(["a", "dog", "flies"]) == [4, 5, UNK]
    assert vocabulary.decode([START, 4, 5, PAD, 6, END, 9, 9]) == "a dog runs"
    assert vocabulary.decode([UNK]) == "<unk>"
    assert vocabulary.decode([END]) == ""
    known = [word for word in vocabulary.words if word not in SPECIALS]
    assert vocabulary.decode(vocabulary.encode(known)) == " ".join(known)


def test_a_caption_cannot_say_a_special_word() -> None:
    vocabulary = build_vocabulary(["a <end> b <pad> <unk>"] * 3)
    assert vocabulary.words == [*SPECIALS, "a", "b"]
    assert vocabulary.encode(["<end>", "<pad>", "<start>", "<unk>"]) == [UNK] * 4


def test_decode_refuses_ids_of_another_vocabulary() -> None:
    with pytest.raises(CaptionerError, match="11 words but the id is 11"):
        build_vocabulary(CAPTIONS).decode([11])


def test_save_and_load(tmp_path: Path) -> None:
    vocabulary = Vocabulary([*SPECIALS, "café", "x"], [0, 0, 0, 0, 5, 2], {"max_length": 7, "min_count": 2})
    vocabulary.save(tmp_path / "vocab.json")
    loaded = Vocabulary.load(tmp_path / "vocab.json")
    assert (loaded.words, loaded.counts, loaded.facts, loaded.fingerprint) == (
        vocabulary.words,
        vocabulary.counts,
        vocabulary.facts,
        vocabulary.fingerprint,
    )
    assert loaded.max_length == 7
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "vocab.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "vocab.json"]


def test_fingerprint_follows_words_and_maximum_length_only() -> None:
    base = Vocabulary([*SPECIALS, "a", "b"], facts={"max_length": 5})
    assert (
        base.fingerprint
        == Vocabulary([*SPECIALS, "a", "b"], [0, 0, 0, 0, 9, 3], {"max_length": 5, "vectors": "none"}).fingerprint
    )
    assert base.fingerprint != Vocabulary([*SPECIALS, "b", "a"], facts={"max_length": 5}).fingerprint
    assert base.fingerprint != Vocabulary([*SPECIALS, "a", "b"], facts={"max_length": 6}).fingerprint


GOOD = {"format_version": 1, "words": [*SPECIALS, "a"], "counts": [0, 0, 0, 0, 1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a vocabulary"),
        ("{}", "not a vocabulary"),
        (json.dumps({**GOOD, "format_version": 99}), "format 99"),
        (json.dumps({**GOOD, "words": [*SPECIALS, 5]}), "5 is not text"),
        (json.dumps({**GOOD, "words": [*SPECIALS, None]}), "None is not text"),
        (json.dumps({**GOOD, "words": ["a", *SPECIALS]}), "first words"),
        (json.dumps({**GOOD, "words": [*SPECIALS, "a", "a"], "counts": [0] * 6}), "'a' occurs twice"),
        (json.dumps({**GOOD, "counts": [1]}), "5 words but 1 counts"),
        (json.dumps({**GOOD, "counts": ["x"] * 5}), "counts"),
        (json.dumps({**GOOD, "max_length": "long"}), "max_length"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CaptionerError, match=message) as caught:
        Vocabulary.load(path)
    assert str(path) in caught.value.message and "\n" not in caught.value.message


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="none.json: cannot be read"):
        Vocabulary.load(tmp_path / "none.json")
