"""Flickr8k and Flickr30k in their official layout or the common ``Images/`` + ``captions.txt``.

An image's id is its photo number on Flickr, the first part of its file name, so it is the same in any partial copy.
With other file names, ids are positions in the sorted list of names, from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.images.containers import find_images
from captioner.images.manifests import Manifest
from captioner.images.records import ImageRecord, Listing, clean
from captioner.images.tables import csv_rows, read_text, rows

_PHOTO = re.compile(r"(\d+)(?:_\w+)?\.jpe?g", re.IGNORECASE)
# the official Flickr8k tokens call one image 2258277193_586949ec62.jpg.1
_TOKEN = re.compile(r"(?P<name>.+?\.jpe?g)(?:\.\d+)?#\d+\s+(?P<caption>.*)", re.IGNORECASE)


def read_flickr(manifest: Manifest, root: Path | None) -> Listing:
    """The images of a local copy.

    Raises:
        CaptionerError: no ``download.root``, or it lacks images, captions or one of several split lists; an image is
            in two lists.
    """
    if root is None:
        raise CaptionerError(
            f"params.yaml: dataset={manifest.name}: it cannot be downloaded automatically; get it from "
            f"{manifest.homepage} and set download.root to its"
            " folder"
        )
    if not root.is_dir():
        raise CaptionerError(f"params.yaml: download.root={root}: no such folder; give the folder of {manifest.name}")
    images = find_images(root, manifest.images)
    if images is None:
        raise CaptionerError(
            f"{root}: no folder of images ({', '.join(manifest.images)}); set download.root to the folder of "
            f"{manifest.name}"
        )
    table = _find(root, manifest.tables)
    if table is None:
        raise CaptionerError(
            f"{root}: no captions ({', '.join(manifest.tables)}); set download.root to the folder of {manifest.name}"
        )
    captions: dict[str, list[str]] = {}
    skipped: list[tuple[str, str]] = []
    for number, name, caption in _rows(table):
        if name is None:
            skipped.append((f"{table.name}, line {number}", "no image and caption in this line"))
            continue
        texts = captions.setdefault(name, [])
        if caption:
            texts.append(caption)
        else:
            skipped.append((name, f"line {number}: empty caption"))
    if not captions:
        raise CaptionerError(
            f"{table}: no caption found; lines are 'name.jpg#0<tab>caption', 'name.jpg,caption' or 'name.jpg| 0| "
            "caption'"
        )
    splits = _splits(manifest, root)
    ids = _ids(captions)
    records, uncaptioned = [], 0
    for name, texts in captions.items():
        if not texts:
            uncaptioned += 1
            skipped.append((name, "no captions"))
        elif splits and name not in splits:
            skipped.append((name, "in none of the data set's split lists"))
        else:
            number = ids[name]
            photo = _PHOTO.fullmatch(name)
            key = f"flickr {photo[1]}" if photo else f"{manifest.name} {name}"
            records.append(
                ImageRecord(number, name, tuple(texts), splits.get(name), images.source(name, str(table)), key)
            )
    skipped += [(name, "no captions") for name in images.names() if name not in captions]
    return Listing(sorted(records, key=lambda record: record.image_id), skipped, uncaptioned, str(table))


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    folders = [
        root,
        *sorted(
            path
            for path in root.iterdir()
            if path.is_dir() and path.name.lower().endswith(("text", "captions", "annotations"))
        ),
    ]
    return next((folder / name for name in names for folder in folders if (folder / name).is_file()), None)


def _ids(names: dict[str, list[str]]) -> dict[str, int]:
    matches = {name: _PHOTO.fullmatch(name) for name in names}
    numbers = {name: int(match[1]) for name, match in matches.items() if match}
    if len(set(numbers.values())) == len(names) and max(numbers.values()) < 1 << 53:
        return numbers
    return {name: position for position, name in enumerate(sorted(names), 1)}


def _splits(manifest: Manifest, root: Path) -> dict[str, str]:
    lists = {split: _find(root, (name,)) for split, name in manifest.splits.items()}
    if not any(lists.values()):
        return {}
    lost = [manifest.splits[split] for split, path in lists.items() if path is None]
    if lost:
        raise CaptionerError(
            f"{root}: {', '.join(lost)} is missing, but other split lists exist; add it, or remove the lists for an "
            "85/15 split"
        )
    splits: dict[str, str] = {}
    for split, path in lists.items():
        assert path is not None
        for name in _text(path).split():
            if splits.setdefault(name, split) != split:
                raise CaptionerError(
                    f"{path}: image {name} is also in the list for {splits[name]}; an image belongs to one split"
                )
    return splits


def _text(path: Path) -> str:
    return read_text(path, "check download.root", "download the file again")


def _rows(table: Path) -> Iterator[tuple[int, str | None, str]]:
    """(line number, image or None if the line is invalid, caption)."""
    text = _text(table)
    lines = rows(text)
    if table.name.endswith((".token", ".token.txt")):
        yield from _tokens(lines)
    elif lines and "|" in lines[0]:
        yield from _bars(lines)
    else:
        yield from _commas(table, text)


def _tokens(lines: list[str]) -> Iterator[tuple[int, str | None, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            match = _TOKEN.fullmatch(line)
            yield (number, match["name"], clean(match["caption"])) if match else (number, None, "")


def _bars(lines: list[str]) -> Iterator[tuple[int, str | None, str]]:
    """``image_name| comment_number| comment``; one row of the published file lacks its second bar."""
    for number, line in enumerate(lines, 1):
        cells = line.split("|", 2)
        if number == 1 or not line.strip():
            continue
        rest = re.fullmatch(r"\s*\d+\s*\|?(?:\s+|$)(.*)", "|".join(cells[1:]))
        yield (number, cells[0].strip(), clean(rest[1])) if rest and cells[0].strip() else (number, None, "")


def _commas(table: Path, text: str) -> Iterator[tuple[int, str | None, str]]:
    """CSV with a header; captions at the end of a row may contain unquoted commas."""
    lines = csv_rows(table, text, strict=False)
    _, cells = next(lines, (1, []))
    header = [name.strip().lower() for name in cells]
    while header and not header[-1]:
        header.pop()
    padding = len(cells) - len(header)  # a spreadsheet fills all rows up with as many empty cells
    image = next((header.index(name) for name in ("image", "image_name") if name in header), None)
    caption = next((header.index(name) for name in ("caption", "comment") if name in header), None)
    if image is None or caption is None or caption != len(header) - 1:
        raise CaptionerError(
            f"{table}: its first line is {','.join(header)[:80]!r} instead of image,caption; download the file again"
        )
    for line, cells in lines:
        for _ in range(padding):
            if len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
        if len(cells) > caption and cells[image].strip():
            yield line, cells[image].strip(), clean(",".join(cells[caption:]))
        else:
            yield line, None, ""
