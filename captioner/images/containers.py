"""Finds image files by name in the folders and zip archives of a local copy or of the download cache."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.images.records import Absent, Source, ZipSource, file_source, inside

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_MAX_MEMBER_BYTES = 2 << 30


class Folder:
    """Image files in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def source(self, name: str, where: str) -> Source:
        """The image ``name``, or ``Absent``; CaptionerError with ``where`` if the path leaves the folder."""
        return file_source(self.path / inside(name, where), f"not in {self.path.name}")

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
        return self._entries.get(inside(name, where).rsplit("/", 1)[-1]) or Absent(f"not in {self.path.name}")

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
