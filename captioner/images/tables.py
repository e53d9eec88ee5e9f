"""Reads tables of captions: UTF-8 text, its rows, and CSV.

Only ``\\n``, ``\\r`` and ``\\r\\n`` end a row. ``str.splitlines`` also splits at U+2028, U+0085, form feeds and others,
which occur inside captions.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import click

from captioner.errors import CaptionerError
from captioner.images.containers import IMAGE_SUFFIXES

_MANY_LINES = 5  # of one row; captions rarely have line breaks, so it is worth a warning
# A cell and the comma or line break behind it. Text that follows a closing quote belongs to a cell of one line only.
_CELL = re.compile(
    r"""(?: "[^"]*(?:""[^"]*)*" | "[^"\r\n]*(?:""[^"\r\n]*)*"[^,\r\n]* | (?!")[^,\r\n]* ) (?:,|\r\n|\r|\n|\Z)""",
    re.VERBOSE,
)
_STRICT_CELL = re.compile(
    r"""(?: "[^"]*(?:""[^"]*)*" | (?!")[^,\r\n]* ) (?:,|\r\n|\r|\n|\Z)""",
    re.VERBOSE,
)
# the name of an image inside a cell that has line breaks: the cell has taken in other rows
_IMAGE_NAME = re.compile(rf"(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})\s*(?:[,\r\n]|\Z)", re.IGNORECASE)


def read_text(path: Path, missing: str, remedy: str) -> str:
    """A table's text without its byte order mark.

    Args:
        missing, remedy: what to do if there is no such file, or if it is no UTF-8 text.

    Raises:
        CaptionerError: the file is missing, cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CaptionerError(f"{path}: not found; {missing}") from error
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read ({error.strerror}); check its path and permissions") from error
    except UnicodeDecodeError as error:
        line = len(rows(error.object[: error.start].decode() + "x"))
        raise CaptionerError(f"{path}: not UTF-8 text (line {line}, byte {error.start}); {remedy}") from error


def rows(text: str) -> list[str]:
    """The rows of a text without their ends."""
    return [row.rstrip("\r\n") for row in io.StringIO(text, newline="")]


def csv_rows(path: Path, text: str, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row that is not empty; ``path`` is for messages.

    Args:
        strict: text behind a closing quote is an error; otherwise it belongs to the cell, as in ``"Stop" says a sign``.

    Raises:
        CaptionerError: a quote is never closed, or in the wrong place; the line where it opens is named.
    """
    pattern = _STRICT_CELL if strict else _CELL
    if not strict:  # the reader itself would take all rows up to the next quote for one cell
        _check_quotes(path, text, pattern)
    reader = csv.reader(io.StringIO(text, newline=""), strict=strict)
    last = 0
    try:
        for cells in reader:
            first, last = last + 1, reader.line_num
            if last > first and any(len(rows(cell)) > 1 and _IMAGE_NAME.search(cell) for cell in cells):
                raise CaptionerError(
                    f"{path}, line {first}: a quote that opens here is closed in line {last} only, and takes in other "
                    "rows; close it at the end of its cell"
                )
            if last - first >= _MANY_LINES:
                click.echo(
                    f"{path}, line {first}: this row ends in line {last}; check that its quotes are closed", err=True
                )
            if any(cell.strip() for cell in cells):
                yield first, cells
    except csv.Error as error:
        _check_quotes(path, text, pattern)
        raise CaptionerError(f"{path}, line {last + 1}: not valid CSV ({error}); fix the row") from error


def _check_quotes(path: Path, text: str, cell: re.Pattern[str]) -> None:
    position, end = 0, len(text)
    while position < end:
        match = cell.match(text, position)
        if match is None:
            line = len(rows(text[:position] + "x"))
            quoted = re.compile(r'"[^"]*(?:""[^"]*)*"').match(text, position)
            what = "is never closed"
            if quoted:
                closed = len(rows(text[: quoted.end()]))
                what = f"is closed in line {closed}, before the end of the cell"
            raise CaptionerError(
                f"{path}, line {line}: not valid CSV: the quote that opens here {what}; close it at the end of the "
                'cell, and double the quotes inside (`""`)'
            )
        position = match.end()
