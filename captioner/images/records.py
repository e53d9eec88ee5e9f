"""The records of a data set: images with captions and the sources of their bytes."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from captioner.errors import CaptionerError
from captioner.images.decode import MAX_BYTES, BadImage, read_regular

_LOCAL_HEADER = 30


@dataclass(frozen=True)
class Absent:
    """A listed image that is not in the local copy or archive, or could not be downloaded."""

    reason: str
    identity = "absent"

    def read(self) -> bytes:
        raise BadImage(self.reason)


@dataclass(frozen=True)
class FileSource:
    """An image file; ``size`` in bytes when the data set was listed."""

    path: str
    size: int

    @property
    def identity(self) -> str:
        return f"file {self.size}"

    def read(self) -> bytes:
        try:
            data = read_regular(self.path)
        except OSError as error:
            raise BadImage(f"file cannot be read ({error.strerror})") from None
        if data is None:
            raise BadImage("not a regular file")
        return data


@dataclass(frozen=True)
class ZipSource:
    """An image inside a zip, at the offset and with the sizes of the archive's directory; read with pread."""

    archive: str
    offset: int
    packed: int
    size: int
    method: int
    crc: int

    @property
    def identity(self) -> str:
        return f"zip {self.size} {self.crc}"

    def read(self) -> bytes:
        if max(self.size, self.packed) > MAX_BYTES:
            raise BadImage(f"file of {self.size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            descriptor = os.open(self.archive, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CaptionerError(
                f"{self.archive}: cannot be read ({error.strerror}); restore the archive and run again"
            ) from error
        try:
            head = os.pread(descriptor, _LOCAL_HEADER, self.offset)
            if len(head) < _LOCAL_HEADER or head[:4] != b"PK\x03\x04":
                raise BadImage("the zip archive is damaged here")
            skip = _LOCAL_HEADER + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
            data = os.pread(descriptor, self.packed, self.offset + skip)
        except OSError as error:
            raise BadImage(f"the zip archive cannot be read ({error.strerror})") from None
        finally:
            os.close(descriptor)
        if self.method == 8:
            try:
                data = zlib.decompressobj(-15).decompress(data, self.size + 1)
            except zlib.error:
                raise BadImage("the zip archive is damaged here") from None
        elif self.method != 0:
            raise BadImage(f"zip compression method {self.method} is not supported")
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise BadImage("the zip archive is damaged here")
        return data


@dataclass(frozen=True)
class UrlSource:
    """An image on the network; downloaded before its block is written."""

    url: str

    @property
    def identity(self) -> str:
        return f"url {self.url}"

    def read(self) -> bytes:
        raise BadImage("not fetched")


@dataclass(frozen=True)
class FetchedSource:
    """The bytes of a downloaded image."""

    data: bytes
    identity = "fetched"

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class SceneSource:
    """A generated scene; the worker process draws it."""

    seed: int
    index: int

    @property
    def identity(self) -> str:
        return f"scene {self.seed} {self.index}"

    def read(self) -> bytes:
        raise TypeError("a scene is drawn, not read")


Source: TypeAlias = Absent | FileSource | ZipSource | UrlSource | FetchedSource | SceneSource


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set.

    Attributes:
        image_id: unique within the data set.
        file_name: its path in the data set, with ``/`` between folders.
        captions: at least one, none empty.
        split: train, val or test if the data set defines it, else None.
        source: the source of its bytes.
        photo: key of the photograph across data sets: records with the same ``photo`` show the same photograph.
    """

    image_id: int
    file_name: str
    captions: tuple[str, ...]
    split: str | None
    source: Source
    photo: str


@dataclass
class Listing:
    """What a reader found: records by ascending id, and what it skipped.

    Attributes:
        records: the images that have captions.
        skipped: (image or row, reason) of everything skipped.
        uncaptioned: number of listed images without a caption.
        table: the file that lists the images, for messages.
    """

    records: list[ImageRecord]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    uncaptioned: int = 0
    table: str = ""


def clean(caption: object) -> str:
    """A caption with single spaces and no line breaks; empty if it is not text."""
    return " ".join(caption.split()) if isinstance(caption, str) else ""


def valid_unicode(text: str) -> str:
    """The text with U+FFFD for unpaired surrogates, which JSON may contain and UTF-8 cannot encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def inside(name: str, where: str) -> str:
    """``name`` as a normalised relative POSIX path; ``where`` (file and line) appears in the error.

    Raises:
        CaptionerError: the path is absolute or leads out of its folder.
    """
    parts: list[str] = []
    path = PurePosixPath(name.replace("\\", "/"))
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part == ".." or path.is_absolute() or part.endswith(":") or "\0" in part:
            raise CaptionerError(
                f"{where}: image {name!r} is outside its folder; give a path relative to the folder of the images"
            )
        else:
            parts.append(part)
    return "/".join(parts)


def digest(records: Iterable[tuple[ImageRecord, str]]) -> str:
    """SHA-256 (hex) of records and splits: ids, names, captions and the identity of each image's bytes, but no path."""
    total = hashlib.sha256()
    for record, split in records:
        total.update(
            repr((record.image_id, record.file_name, record.captions, split, record.source.identity)).encode(
                "utf-8", "backslashreplace"
            )
        )
    return total.hexdigest()


def file_source(path: Path, reason: str) -> FileSource | Absent:
    """The file ``path``, or ``Absent`` with ``reason`` if there is no such file."""
    try:
        return FileSource(str(path), path.stat().st_size)
    except (OSError, ValueError):  # ValueError: an impossible file name, such as an unpaired surrogate
        return Absent(reason)
