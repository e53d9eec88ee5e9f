"""What evaluation refuses and accepts where the model's tokenizer is not English."""

from __future__ import annotations

import json

import pytest

from captioner.errors import CaptionerError
from captioner.search import prefix_words
from captioner.vocabulary.vocabulary import SPECIALS, Vocabulary
from tests.evaluation import small


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The small run with a model whose tokenizer is ``words``."""
    paths = small.make_run(tmp_path_factory.mktemp("words"))
    config = json.loads((paths["models"] / "config.json").read_text())
    config["vocabulary"]["tokenizer"] = "words"
    (paths["models"] / "config.json").write_text(json.dumps(config))
    return paths


def test_meteor_cannot_choose_the_beam_size(words, tmp_path):
    with pytest.raises(CaptionerError, match="select_by=meteor: this metric knows English only.*tokenizer is words"):
        small.run(words, tmp_path / "results", select_by="meteor")
    assert not (tmp_path / "results").exists()


def test_an_ensemble_has_one_tokenizer(words, paths, tmp_path):
    with pytest.raises(CaptionerError, match="its tokenizer is english, that of this vocabulary words"):
        small.run(words, tmp_path / "results", ensemble=[str(paths["models"])])


def test_a_prefix_is_split_as_captions_are():
    vocabulary = Vocabulary([*SPECIALS, *"一只狗"], facts={"tokenizer": "characters"})
    assert prefix_words("一只", vocabulary, 5, "prefix") == (4, 5)
    with pytest.raises(CaptionerError, match="the word '猫' is not in the model's vocabulary"):
        prefix_words("一只猫", vocabulary, 5, "prefix")
