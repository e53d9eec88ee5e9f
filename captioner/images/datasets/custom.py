"""The user's own images: a table of ``image,caption[,split]`` with one row per caption, or COCO's captions format.

The table is CSV, JSONL or a JSON list of objects. Image ids are those of the COCO file; else they count from 1, in the
order of first appearance.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.images.containers import Folder
from captioner.images.datasets.coco import check_annotations
from captioner.images.records import Absent, ImageRecord, Listing, Source, clean, inside
from captioner.images.tables import csv_rows, read_text, rows

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

    A ``caption`` in JSON may also be a list of captions. Repeated captions of an image count once.

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
    ids: dict[str, int] = {}
    listing = Listing([], table=str(table))
    skipped = listing.skipped
    for place, row, image_id in _rows(table, listing):
        where = f"{table}, {place}"
        name = row.get("image")
        if not isinstance(name, str) or not name.strip():
            skipped.append((place, "no image named"))
            continue
        name = inside(name.strip(), where)
        texts = row.get("caption")
        texts = [clean(text) for text in (texts if isinstance(texts, list) else [texts])]
        kept = captions.setdefault(name, {})
        ids.setdefault(name, len(captions) if image_id is None else image_id)
        for text in texts or [""]:
            if text:
                kept[text] = None
            else:
                skipped.append((name, f"{place}: empty caption"))
        split = _split(row.get("split"), where)
        if split is not None and splits.setdefault(name, split) != split:
            raise CaptionerError(
                f"{where}: image {name} is in {splits[name]} and in {split}; give all rows of an image the same split"
            )
    if not captions:
        raise CaptionerError(f"{table}: no image is listed; {_REMEDY}, one row per caption")
    images = Folder(folder, "file not found")
    for name, texts in captions.items():
        if not texts:
            listing.uncaptioned += 1
            skipped.append((name, "no captions"))
        else:
            source = _find(images, name, str(table))
            listing.records.append(
                ImageRecord(ids[name], name, tuple(texts), splits.get(name), source, f"custom {name}")
            )
    listing.records.sort(key=lambda record: record.image_id)
    return listing


def _find(images: Folder, name: str, where: str) -> Source:
    """The image file; table and file system may use different Unicode forms of accents."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    sources = [images.source(form, where) for form in dict.fromkeys(forms)]
    return next((source for source in sources if not isinstance(source, Absent)), sources[0])


def _split(value: Any, where: str) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    name = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(name, str) or name not in SPLIT_NAMES:
        raise CaptionerError(f"{where}: split {value!r} is unknown; give train, val or test, or leave it empty")
    return SPLIT_NAMES[name]


_Row = tuple[str, dict[str, Any], int | None]  # place in the table, cells, image id where the table has one


def _rows(table: Path, listing: Listing) -> Iterator[_Row]:
    """The rows of a table of any format; what a COCO file has in excess goes to ``listing.skipped``."""
    text = read_text(
        table,
        "set download.captions to your CSV or JSON of image,caption[,split]",
        "save it as UTF-8 (in a spreadsheet: CSV UTF-8)",
    )
    first = text.lstrip()[:1]  # tells a JSON document, whatever the file's name
    if first == "[":
        yield from _json_list(table, text)
    elif first == "{" and (coco := _coco_captions(text)) is not None:
        images, captions = check_annotations(coco, str(table), listing)
        for number, image in images.items():
            row = {"image": image["file_name"], "caption": captions[number], "split": image.get("split")}
            yield f"image {number}", row, number
    elif first == "{" or table.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        yield from _jsonl(table, text)
    else:
        yield from _csv(table, text)


def _csv(table: Path, text: str) -> Iterator[_Row]:
    lines = csv_rows(table, text, strict=True)
    _, header = next(lines, (1, []))
    header = [name.strip().lower() for name in header]
    if "image" not in header or "caption" not in header:
        raise CaptionerError(f"{table}: its first line is {','.join(header)[:80]!r}; {_REMEDY}, separated by commas")
    for line, cells in lines:
        while len(cells) > len(header) and not cells[-1].strip():  # spreadsheets fill rows up with empty cells
            cells.pop()
        if len(cells) > len(header):
            raise CaptionerError(
                f"{table}, line {line}: {len(cells)} columns instead of {len(header)}; put captions with commas in "
                "double quotes"
            )
        yield f"line {line}", dict(zip(header, cells)), None


def _coco_captions(text: str) -> dict[str, Any] | None:
    """The JSON object of a file in COCO's captions format; None for JSONL."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if "annotations" in content else None


def _json_list(table: Path, text: str) -> Iterator[_Row]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{table}: not valid JSON ({error}); correct it, or export the list again") from error
    for number, row in enumerate(content, 1):
        if not isinstance(row, dict):
            raise CaptionerError(f"{table}, entry {number}: not a JSON object; {_REMEDY}")
        yield f"entry {number}", row, None


def _jsonl(table: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(rows(text), 1):
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
        yield f"line {number}", row, None
