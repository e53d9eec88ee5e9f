"""Which images the arguments of a command mean, and how their names are shown."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from captioner.images.containers import IMAGE_SUFFIXES


def find_images(arguments: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Every file that is named, and every image file in the folders that are named and in those below, by name.

    Returns:
        Paths in the order of the arguments, and what is wrong with the others: (path, reason).
    """
    found: list[str] = []
    faults: list[tuple[str, str]] = []
    for argument in arguments:
        if not os.path.isdir(argument):
            found.append(argument)
            continue
        before, faulty = len(found), len(faults)
        for folder, below, files in os.walk(
            argument, onerror=lambda error: faults.append((str(error.filename), f"cannot be read ({error.strerror})"))
        ):
            below.sort()
            names = sorted(name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
            found += [os.path.join(folder, name) for name in names]
        if len(found) == before and len(faults) == faulty:
            faults.append((argument, f"no image in this folder ({', '.join(IMAGE_SUFFIXES)})"))
    return found, faults


def printable(text: str) -> str:
    """The text with its control characters, and bytes that are no text, written as escapes: safe on a terminal, and one
    line."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class Names:
    """Names of files to write for images, in one folder: each the image's own, numbered where another image has
    it."""

    def __init__(self, suffix: str) -> None:
        self._suffix, self._taken = suffix, set[str]()

    def of(self, image: str) -> str:
        """``holiday.jpg`` -> ``holiday.attention.png``, then ``holiday-2.attention.png``."""
        stem = "".join(letter if letter.isprintable() else "_" for letter in Path(image).stem) or "image"
        while len(stem.encode()) > 200:  # with the rest within 255 bytes, what file systems take
            stem = stem[:-1]
        name, number = stem, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        return name + self._suffix
