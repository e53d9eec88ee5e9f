"""Training on captions of a language written without spaces: each character is a token, in every part of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.model_io import check_words, load_model
from captioner.training.inputs import Inputs
from captioner.vocabulary.vocabulary import SPECIALS, Vocabulary
from tests.training import small

CHINESE = {"a": "一只", "the": "这只", "on": "在", "is": "是", "and": "并且", "stands": "站着", "with": "有"}
CHINESE |= {"red": "红色", "blue": "蓝色", "green": "绿色", "cat": "猫", "dog": "狗", "horse": "马", "bird": "鸟"}
CHINESE |= {"beach": "海滩", "road": "公路", "field": "田野"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small data set with its captions in Chinese."""
    paths = small.make_data(tmp_path_factory.mktemp("data"))
    content = json.loads(paths["captions"].read_text())
    for annotation in content["annotations"]:
        annotation["caption"] = "".join(CHINESE[word] for word in annotation["caption"].split())
    paths["captions"].write_text(json.dumps(content))
    letters = sorted({letter for annotation in content["annotations"] for letter in annotation["caption"]})
    vocabulary = Vocabulary([*SPECIALS, *letters], facts={"max_length": 16, "tokenizer": "characters"})
    vocabulary.save(paths["vocab"])
    np.save(paths["embeddings"], np.random.default_rng(0).normal(0, 0.4, (len(vocabulary), 8)).astype(np.float32))
    return paths


@pytest.fixture(scope="module")
def trained(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With validation's scores of captions, and self-critical epochs, whose reward is CIDEr-D."""
    options = {"epochs": 12, "learning_rate": 0.03, "select_by": "val_cider_d", "scst_epochs": 1, "patience": 20}
    return small.run(tmp_path_factory.mktemp("run"), data, small.small_parameters(hidden_size=32, **options))


def test_captions_are_tables_of_characters(data: dict[str, Path]) -> None:
    inputs: Inputs = small.read_data(data)
    row = inputs.train.tokens[0]
    caption = inputs.captions.captions(inputs.captions.image_ids("train")[0])[0]
    assert [inputs.vocabulary.words[token] for token in row[1 : len(caption) + 1]] == list(caption)
    assert inputs.vocabulary.decode(row) == caption


def test_scores_of_validation_and_reward_are_of_characters(trained: Path) -> None:
    """Each caption would be one English token: BLEU-4 would be 0, and the reward nearly always."""
    rows = small.history(trained)
    assert float(rows[-2]["val_bleu_4"]) > 0.3 and float(rows[-2]["val_cider_d"]) > 1
    assert float(rows[-1]["train_reward"]) > 1


def test_the_model_keeps_the_tokenizer(trained: Path) -> None:
    model = load_model(trained / "models")
    assert model.vocabulary.tokenizer.name == "characters" and model.config["vocabulary"]["tokenizer"] == "characters"


def test_a_model_of_another_tokenizer_is_refused(trained: Path) -> None:
    ours = load_model(trained / "models").vocabulary
    theirs = Vocabulary(ours.words, facts={"tokenizer": "words"})
    with pytest.raises(CaptionerError, match="x: its tokenizer is words, that of this vocabulary characters; leave it"):
        check_words("x", theirs, ours, "leave it out")
