"""What a data set lists: images with captions, and where the bytes of each are."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Union

from captioner.errors import CaptionerError
from captioner.images.decode import MOST_BYTES, BadImage, read_regular

_LOCAL_HEADER = 30


@dataclass(frozen=True)
class Absent:
    """A listed image that the local copy or the archive lacks, or that could not be fetched."""

    reason: str
    identity = "absent"

    def read(self) -> bytes:
        raise BadImage(self.reason)


@dataclass(frozen=True)
class FileSource:
    """An image in a file of its own; ``size`` in bytes as it was when the data set was listed."""

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
            raise BadImage("no regular file")
        return data


@dataclass(frozen=True)
class ZipSource:
    """An image inside a zip, by the place and sizes that the archive's directory states; read with pread, never
    unpacked to disk."""

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
        if max(self.size, self.packed) > MOST_BYTES:
            raise BadImage(f"file of {self.size:,} bytes; at most {MOST_BYTES:,} are read")
        try:
            descriptor = os.open(self.archive, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CaptionerError(
                f"{self.archive}: cannot be read ({error.strerror}); put the archive back and run again"
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
    """An image on the network; it is fetched before the work on its block begins."""

    url: str

    @property
    def identity(self) -> str:
        return f"url {self.url}"

    def read(self) -> bytes:
        raise BadImage("not fetched")


@dataclass(frozen=True)
class FetchedSource:
    """The bytes of an image that came over the network."""

    data: bytes
    identity = "fetched"

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class SceneSource:
    """A scene that is drawn where it is needed."""

    seed: int
    index: int

    @property
    def identity(self) -> str:
        return f"scene {self.seed} {self.index}"

    def read(self) -> bytes:
        raise TypeError("a scene is drawn, not read")


Source = Union[Absent, FileSource, ZipSource, UrlSource, FetchedSource, SceneSource]


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set.

    Attributes:
        image_id: unique within the data set.
        file_name: its name there, with ``/`` between folders.
        captions: at least one, none empty.
        split: train, val or test where the data set says so, else None.
        source: where its bytes are.
        photo: what the image shows, across data sets: two records with one ``photo`` are the same photograph.
    """

    image_id: int
    file_name: str
    captions: tuple[str, ...]
    split: str | None
    source: Source
    photo: str


@dataclass
class Listing:
    """What a reader found: records by ascending id, what it left out and why.

    Attributes:
        records: the images that have captions.
        skipped: (image or row, reason) of everything left out.
        uncaptioned: how many listed images have no caption.
        table: the file that lists the images, for messages.
    """

    records: list[ImageRecord]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    uncaptioned: int = 0
    table: str = ""


def clean(caption: object) -> str:
    """A caption with single spaces and no line breaks; empty where it is no text."""
    return " ".join(caption.split()) if isinstance(caption, str) else ""


def inside(name: str, where: str) -> str:
    """``name`` as a relative POSIX path, normalised; ``where`` (file and line) is named in the error.

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
    """SHA-256 (hex) of records with their splits: ids, names, captions and what identifies each image's bytes, but no
    path."""
    total = hashlib.sha256()
    for record, split in records:
        total.update(
            repr((record.image_id, record.file_name, record.captions, split, record.source.identity)).encode(
                "utf-8", "backslashreplace"
            )
        )
    return total.hexdigest()


def file_source(path: Path, reason: str) -> FileSource | Absent:
    """The file ``path``, or ``Absent`` with this reason."""
    try:
        return FileSource(str(path), path.stat().st_size)
    except (OSError, ValueError):  # ValueError: a name that no file can have, such as half a surrogate pair
        return Absent(reason)
