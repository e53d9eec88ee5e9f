"""The user's own images: a CSV or JSONL table of ``image,caption[,split]`` with one row per caption.

Image ids count from 1, in the order of first appearance in the table.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.images.records import Absent, ImageRecord, Listing, Source, clean, file_source, inside

# names of the three splits in other data sets
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_REMEDY = "the table needs the columns image and caption, and may have split"


def read_custom(table: Path, root: Path | None) -> Listing:
    """The images of a table; paths are relative to ``root``, or without it to the table's folder.

    A ``caption`` in JSONL may also be a list of captions. Repeated captions of an image count once.

    Raises:
        CaptionerError: the table is missing, invalid or empty; a path leaves the folder; a split is unknown, or a
            image's rows have different ones.
    """
    folder = root if root is not None else table.parent
    if root is not None and not root.is_dir():
        raise CaptionerError(
            f"params.yaml: download.root={root}: no such folder; give the folder that the images of {table} are "
            "relative to"
        )
    captions: dict[str, dict[str, None]] = {}
    splits: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    for line, row in _rows(table):
        where = f"{table}, line {line}"
        name = row.get("image")
        if not isinstance(name, str) or not name.strip():
            skipped.append((f"line {line}", "no image named"))
            continue
        name = inside(name.strip(), where)
        texts = row.get("caption")
        texts = [clean(text) for text in (texts if isinstance(texts, list) else [texts])]
        kept = captions.setdefault(name, {})
        for text in texts or [""]:
            if text:
                kept[text] = None
            else:
                skipped.append((name, f"line {line}: empty caption"))
        split = _split(row.get("split"), where)
        if split is not None and splits.setdefault(name, split) != split:
            raise CaptionerError(
                f"{where}: image {name} is in {splits[name]} and in {split}; give all rows of an image the same split"
            )
    if not captions:
        raise CaptionerError(f"{table}: no image is listed; {_REMEDY}, one row per caption")
    records, uncaptioned = [], 0
    for number, (name, texts) in enumerate(captions.items(), 1):
        if not texts:
            uncaptioned += 1
            skipped.append((name, "no captions"))
        else:
            records.append(
                ImageRecord(number, name, tuple(texts), splits.get(name), _find(folder, name), f"custom {name}")
            )
    return Listing(records, skipped, uncaptioned, str(table))


def _find(folder: Path, name: str) -> Source:
    """The image file; table and file system may use different Unicode forms of accents."""
    sources = (
        file_source(folder / form, "file not found")
        for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    )
    return next((source for source in sources if not isinstance(source, Absent)), Absent("file not found"))


def _split(value: Any, where: str) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    name = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(name, str) or name not in SPLIT_NAMES:
        raise CaptionerError(f"{where}: split {value!r} is unknown; give train, val or test, or leave it empty")
    return SPLIT_NAMES[name]


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CaptionerError(
            f"{table}: not found; set download.captions to your CSV or JSONL of image,caption[,split]"
        ) from error
    except OSError as error:
        raise CaptionerError(f"{table}: cannot be read ({error.strerror}); check download.captions") from error
    except UnicodeDecodeError as error:
        raise CaptionerError(f"{table}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    yield from _jsonl(table, text) if table.suffix.lower() in (".jsonl", ".ndjson", ".json") else _csv(table, text)


def _csv(table: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if "image" not in header or "caption" not in header:
            raise CaptionerError(
                f"{table}: its first line is {','.join(header)[:80]!r}; {_REMEDY}, separated by commas"
            )
        for cells in reader:
            if cells:
                if len(cells) > len(header):
                    raise CaptionerError(
                        f"{table}, line {reader.line_num}: {len(cells)} columns instead of {len(header)}; put "
                        "captions with commas in"
                        " double quotes"
                    )
                yield reader.line_num, dict(zip(header, cells))
    except csv.Error as error:
        raise CaptionerError(f"{table}, line {reader.line_num}: not valid CSV ({error}); fix the line") from error


def _jsonl(table: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CaptionerError(
                f"{table}, line {number}: not valid JSON ({error}); a JSONL file has one object per line"
            ) from error
        if not isinstance(row, dict):
            raise CaptionerError(f"{table}, line {number}: not a JSON object; {_REMEDY}")
        yield number, row
