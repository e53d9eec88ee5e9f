"""Tokens of other languages: examples of Unicode Standard Annex 29, and captions as people write them."""

from __future__ import annotations

import builtins
import csv
import random

import pytest

from captioner.errors import CaptionerError
from captioner.vocabulary import tokenizers
from captioner.vocabulary.tokenizers import TOKENIZERS, unspaced_letters
from captioner.vocabulary.vocabulary import UNK, Vocabulary, build_vocabulary
from tests.data import ROOT

WORDS, CHARACTERS = TOKENIZERS["words"], TOKENIZERS["characters"]


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        # the first figure of UAX 29
        (
            "The quick (“brown”) fox can’t jump 32.3 feet, right?",
            "the quick brown fox can't jump 32.3 feet right",
        ),
        ("Eine schwarz-weiße Katze, z.B. 3,5 kg schwer!", "eine schwarz weiße katze z.b 3,5 kg schwer"),
        ("L’homme à l'été: «aujourd'hui»", "l'homme à l'été aujourd'hui"),
        ("¿Dónde está el niño? ¡Aquí!", "dónde está el niño aquí"),
        ("Собака бежит — по траве.", "собака бежит по траве"),
        ("الكلب يجري في الحديقة.", "الكلب يجري في الحديقة"),
        ('צה"ל', 'צה"ל'),  # WB7b and WB7c
        ("한국어 문장", "한국어 문장"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
        ("Fahr\u00adrad a\u0301 a_b \u200b1\u200b2", "fahrrad á a b 1 2"),
        ("a 🐕 dog & cat 100 %", "a dog cat 100"),
        ("\ud83d dog", "dog"),
        ("... ,。", ""),
    ],
)
def test_words(caption: str, tokens: str) -> None:
    assert WORDS.tokenize(caption) == tokens.split()


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("一只狗，在草地上跑。", "一 只 狗 在 草 地 上 跑"),
        ("犬がカメラを見ている", "犬 が カ メ ラ を 見 て い る"),
        ("กำ", "กำ"),  # one extended grapheme cluster in UAX 29, table 1a
        ("สุนัขวิ่ง", "สุ นั ข วิ่ ง"),
        ("ខ្មែរ", "ខ្មែ រ"),
        ("一个人穿着NBA球衣，12号", "一 个 人 穿 着 nba 球 衣 12 号"),
        ("𠮷野家 Nike Air", "𠮷 野 家 nike air"),
        ("a dog can't", "a dog can't"),
    ],
)
def test_characters(caption: str, tokens: str) -> None:
    assert CHARACTERS.tokenize(caption) == tokens.split()


@pytest.mark.parametrize(
    ("name", "caption", "text"),
    [
        ("characters", "一只狗，在草地上跑。", "一只狗在草地上跑"),
        ("characters", "穿着NBA球衣的Nike Air男孩，12号", "穿着nba球衣的nike air男孩12号"),
        ("characters", "สุนัขกำลังวิ่ง", "สุนัขกำลังวิ่ง"),
        ("words", "Eine Katze, ein Hund.", "eine katze ein hund"),
        ("english", "A man's dog.", "a man 's dog"),
    ],
)
def test_joined_captions_are_for_people(name: str, caption: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert tokenizer.join(tokenizer.tokenize(caption)) == text


@pytest.mark.parametrize("name", ["words", "characters"])
def test_a_joined_caption_has_its_tokens_again(name: str) -> None:
    """Generated captions are joined, and scored on the tokens of the text: those that the model chose."""
    generator, tokenizer = random.Random(1), TOKENIZERS[name]
    # ำ alone is left out: it joins what stands before it, and always has a consonant there
    letters = [*"abÄß'’.,-_ 12é狗草がカー·กัง한국🐕\u200d\u0301", "กำ"]
    texts = ["".join(generator.choices(letters, k=generator.randrange(12))) for _ in range(3000)]
    for file in ("chinese", "german"):
        with open(ROOT / f"docs/languages/{file}.csv", encoding="utf-8", newline="") as rows:
            texts += [row["caption"] for row in csv.DictReader(rows)]
    assert len(texts) == 3024
    for text in texts:
        tokens = tokenizer.tokenize(text)
        assert tokenizer.tokenize(tokenizer.join(tokens)) == tokens, ascii(text)


def test_letters_of_scripts_without_spaces() -> None:
    assert unspaced_letters("一只狗, a dog กำ カ") == 6  # three Chinese, two Thai, one Japanese
    assert unspaced_letters("Eine Katze 한국어 नमस्ते собака") == 0


def test_joining_needs_no_regex_and_splitting_names_it(monkeypatch) -> None:
    """A model captions where the package is not installed."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "regex":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    tokenizers._regex.cache_clear()
    tokenizers._patterns.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    vocabulary = Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "狗", "跑"], facts={"tokenizer": "characters"})
    assert vocabulary.decode([4, 5]) == "狗跑"
    for name in ("words", "characters"):
        with pytest.raises(CaptionerError, match="need the package regex.* pip install regex"):
            TOKENIZERS[name].tokenize("狗")
    assert TOKENIZERS["english"].tokenize("A dog.") == ["a", "dog"]


def test_a_vocabulary_keeps_its_tokenizer(tmp_path) -> None:
    vocabulary = build_vocabulary(["一只狗", "一只猫"], tokenizer=CHARACTERS)
    assert vocabulary.words[4:] == ["一", "只", "狗", "猫"]  # Unicode order among equal counts
    vocabulary.save(tmp_path / "vocab.json")
    again = Vocabulary.load(tmp_path / "vocab.json")
    assert again.tokenizer is CHARACTERS and again.encode(again.tokenize("一只鸟")) == [4, 5, UNK]
    assert again.decode([4, 5, 6]) == "一只狗"


def test_older_vocabularies_are_english() -> None:
    old = Vocabulary.from_json({"format_version": 1, "words": ["<pad>", "<start>", "<end>", "<unk>", "dog"]})
    named = Vocabulary(old.words, facts={"tokenizer": "english"})
    other = Vocabulary(old.words, facts={"tokenizer": "words"})
    assert old.tokenizer.name == "english" and old.tokenize("A dog's") == ["a", "dog", "'s"]
    assert old.fingerprint == named.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", ["klingon", 3, ["words"]])
def test_an_unknown_tokenizer_is_refused(name: object) -> None:
    content = {"format_version": 1, "words": ["<pad>", "<start>", "<end>", "<unk>"], "tokenizer": name}
    with pytest.raises(CaptionerError, match="v.json: .*is none of english, words, characters; run the vocab stage"):
        Vocabulary.from_json(content, "v.json")
