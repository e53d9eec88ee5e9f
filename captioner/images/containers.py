"""Finds image files by name in the folders and zip archives of a local copy or of the download cache."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.images.records import Absent, Source, ZipSource, file_source, inside

# of the formats that captioner.images.decode reads
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    *(".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
    *(".avif", ".heic", ".heif"),
)
_MAX_MEMBER_BYTES = 2 << 30


class Folder:
    """Image files in a folder.

    Args:
        missing: the reason that is given for an image that is not there.
    """

    def __init__(self, path: Path, missing: str = "") -> None:
        self.path, self._missing = path, missing or f"not in {path.name}"
        self._listed = cache(_spellings_in)  # a folder is listed once, at the first image that is missing from it

    def source(self, name: str, where: str) -> Source:
        """The image ``name``, or ``Absent``; CaptionerError with ``where`` if the path leaves the folder."""
        name = inside(name, where)
        source = file_source(self.path / name, "")
        return source if not isinstance(source, Absent) else _absent(self._missing, self._other_case(name))

    def _other_case(self, name: str) -> str | None:
        """The path of a file whose name differs from ``name`` in letter case alone."""
        found: list[str] = []
        for part in name.split("/"):
            spelling = self._listed(self.path.joinpath(*found)).get(_folded(part))
            if spelling is None:
                return None
            found.append(spelling)
        other = "/".join(found)
        return None if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name) else other

    def names(self) -> list[str]:
        """Sorted names of the image files directly in the folder."""
        with os.scandir(self.path) as entries:
            return sorted(entry.name for entry in entries if _is_image(entry.name))


class Zip:
    """Image files in a zip, by the last part of their paths. Nothing is unpacked to disk.

    Entries with an absolute path or ``..`` are ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, ZipSource] = {}
        for info in open_directory(path):
            name = info.filename.replace("\\", "/")
            parts = name.split("/")
            if (
                info.is_dir()
                or info.flag_bits & 1
                or name.startswith("/")
                or ".." in parts
                or "__MACOSX" in parts
                or not _is_image(parts[-1])
            ):
                continue
            self._entries[parts[-1]] = ZipSource(
                str(path), info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC
            )

    def source(self, name: str, where: str) -> Source:
        """The image ``name``, or ``Absent``."""
        name = inside(name, where).rsplit("/", 1)[-1]
        return self._entries.get(name) or _absent(f"not in {self.path.name}", self._folded.get(_folded(name)))

    @cached_property
    def _folded(self) -> dict[str, str]:
        return _spellings(self._entries)

    def names(self) -> list[str]:
        """Sorted names of the image files."""
        return sorted(self._entries)


def find_images(root: Path, names: Sequence[str]) -> Folder | Zip | None:
    """The folder or zip of the first name that exists in ``root`` as ``<name>/<name>/``, ``<name>/``,
    ``images/<name>/`` or ``<name>.zip``; None if there is none."""
    for name in names:
        for folder in (root / name / name, root / name, root / "images" / name):
            if folder.is_dir():
                return Folder(folder)
        for archive in (root / f"{name}.zip", root / "images" / f"{name}.zip"):
            if archive.is_file():
                return Zip(archive)
    return None


def open_directory(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip; CaptionerError if it is not a zip or truncated."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CaptionerError(
            f"{path}: cannot be read as a zip archive ({error}); it may be incomplete: delete it and download it again"
        ) from error


def read_member(path: Path, member: str) -> bytes | None:
    """The bytes of one file in a zip, by its path or the end of its path; None if there is no such file."""
    matches = [info for info in open_directory(path) if info.filename == member or info.filename.endswith("/" + member)]
    if not matches:
        return None
    if matches[0].file_size > _MAX_MEMBER_BYTES:
        raise CaptionerError(
            f"{path}: {member} would unpack to {matches[0].file_size:,} bytes; this is not the official archive"
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(matches[0]) as file:
            return file.read(_MAX_MEMBER_BYTES)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise CaptionerError(
            f"{path}: {member} cannot be unpacked ({error}); delete the archive and download it again"
        ) from error
    except Exception as error:  # zlib.error, or the errors of another compression method
        raise CaptionerError(
            f"{path}: {member} is damaged ({error}); delete the archive and download it again"
        ) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._")


def _absent(reason: str, other_case: str | None) -> Absent:
    return Absent(f"{reason}, but {other_case} exists: the letter case differs" if other_case else reason)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _spellings(names: Iterable[str]) -> dict[str, str]:
    return {_folded(name): name for name in sorted(names, reverse=True)}


def _spellings_in(folder: Path) -> dict[str, str]:
    try:
        return _spellings(os.listdir(folder))
    except (OSError, ValueError):
        return {}
