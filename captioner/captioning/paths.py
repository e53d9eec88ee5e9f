"""Which images the arguments of a command mean, and how their names are shown."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from captioner.images.containers import IMAGE_SUFFIXES

_MANY = 20  # files passed over from which on they are counted and not named


@dataclass
class Found:
    """What the arguments of a command mean.

    Attributes:
        images: paths in the order of the arguments.
        faults: folders that cannot be read or have no image: (path, reason).
        passed_over: what else is in the folders: (path, kind).
    """

    images: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)

    def passed_over_lines(self) -> list[str]:
        """One line for each file that is passed over, or for each kind if there are many."""
        if len(self.passed_over) <= _MANY:
            return [f"{printable(path)}: passed over ({kind})" for path, kind in self.passed_over]
        kinds = Counter(kind for _, kind in self.passed_over).most_common()
        return [f"{count:,} passed over ({kind})" for kind, count in kinds]


def find_images(arguments: Iterable[str]) -> Found:
    """Every file that is named, and every image file in the folders that are named and in those below, by name."""
    found = Found()

    def unreadable(error: OSError) -> None:
        found.faults.append((str(error.filename), f"cannot be read ({error.strerror})"))

    for argument in arguments:
        if not os.path.isdir(argument):
            found.images.append(argument)
            continue
        before = len(found.images), len(found.faults)
        for folder, below, files in os.walk(argument, onerror=unreadable):
            below.sort()
            kinds = {name: _kind(name) for name in files}
            kinds |= {name: "link to a folder" for name in below if os.path.islink(os.path.join(folder, name))}
            for name, kind in sorted(kinds.items()):
                path = os.path.join(folder, name)
                if kind is None:
                    found.images.append(path)
                else:
                    found.passed_over.append((path, kind))
        if before == (len(found.images), len(found.faults)):
            found.faults.append((argument, f"no image in this folder ({', '.join(IMAGE_SUFFIXES)})"))
    return found


def _kind(name: str) -> str | None:
    """The kind of a file that is no image by its name; None for an image."""
    if name.startswith("."):
        return "hidden file"
    if name.lower().endswith(IMAGE_SUFFIXES):
        return None
    suffix = printable(os.path.splitext(name)[1].lower())
    return f"{suffix} is no image" if suffix else "no suffix of an image"


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
