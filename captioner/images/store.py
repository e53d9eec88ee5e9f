"""``images.h5``: every image of a data set as JPEG bytes, back to back in one file.

    jpeg       (B,)   uint8, contiguous: all JPEG files, one after the other
    offset     (N+1,) int64: image n is jpeg[offset[n]:offset[n+1]]
    image_id   (N,)   int64, ascending
    size       (N, 2) int32: height, width in pixels
    attributes: format_version, fingerprint (SHA-256 of all four), and how the download stage stored the images:
                image_size, jpeg_quality (not in older files)

Reading goes around h5py: the bytes' place in the file is looked up once, then ``os.pread`` needs no lock, no handle
that breaks across a fork, and no cache.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from captioner.errors import CaptionerError

FORMAT_VERSION = 1
STATED = ("image_size", "jpeg_quality")
"""Optional attributes: how the images were stored, for models that caption other images later."""
_PIECE = 1 << 22


class ImageStore:
    """Read access to an ``images.h5``. Picklable, safe across forks and in threads.

    Attributes:
        path: the file.
        image_ids: (N,) int64, ascending.
        sizes: (N, 2) int32, (height, width) in pixels.
        fingerprint: SHA-256 (hex) of ids, offsets, sizes and JPEG bytes, as the file states it.
        image_size, jpeg_quality: parameters of the download stage; None in files that do not state them.
    """

    image_size: int | None = None
    jpeg_quality: int | None = None

    def __init__(
        self, path: Path, image_ids: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, start: int, fingerprint: str
    ) -> None:
        self.path, self.image_ids, self.sizes, self.fingerprint = path, image_ids, sizes, fingerprint
        self._offsets, self._start = offsets, start
        self._file: int | None = None

    @classmethod
    def open(cls, path: str | Path) -> ImageStore:
        """Read the index of ``path`` and check that it fits the file.

        Raises:
            CaptionerError: the file is missing, no HDF5, of another layout, truncated, or its offsets or ids are out of
                order.
        """
        path = Path(path)
        remedy = "make it again with the download stage"
        try:
            with h5py.File(path, "r") as file:
                version = file.attrs.get("format_version")
                missing = [name for name in ("jpeg", "offset", "image_id", "size") if name not in file]
                if version is None or missing or "fingerprint" not in file.attrs:
                    raise CaptionerError(
                        f"{path}: no images file (lacks {', '.join(missing) or 'its attributes'}); {remedy}"
                    )
                if version != FORMAT_VERSION:
                    raise CaptionerError(
                        f"{path}: format version {version}, this program reads {FORMAT_VERSION}; {remedy}"
                    )
                offsets, image_ids, sizes = file["offset"][:], file["image_id"][:], file["size"][:]
                start, length = file["jpeg"].id.get_offset(), file["jpeg"].shape[0]
                fingerprint = bytes(file.attrs["fingerprint"]).decode("ascii")
                stated = {key: int(file.attrs[key]) for key in STATED if key in file.attrs}
        except CaptionerError:
            raise
        except (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, FileNotFoundError) or not path.exists():
                raise CaptionerError(f"{path}: not there; run the download stage first") from error
            raise CaptionerError(f"{path}: cannot be read as an images file ({error}); {remedy}") from error
        count = len(image_ids)
        if offsets.shape != (count + 1,) or sizes.shape != (count, 2) or start is None or count == 0:
            raise CaptionerError(
                f"{path}: {count} image ids, but offsets {offsets.shape} and sizes {sizes.shape}; {remedy}"
            )
        if offsets[0] != 0 or offsets[-1] != length or np.any(np.diff(offsets) <= 0):
            raise CaptionerError(f"{path}: its offsets do not rise from 0 to the {length:,} JPEG bytes; {remedy}")
        if np.any(np.diff(image_ids) <= 0):
            raise CaptionerError(f"{path}: its image ids do not rise; {remedy}")
        if os.path.getsize(path) < start + length:
            raise CaptionerError(
                f"{path}: truncated at {os.path.getsize(path):,} of at least {start + length:,} bytes; {remedy}"
            )
        store = cls(
            path, image_ids.astype(np.int64), sizes.astype(np.int32), offsets.astype(np.int64), int(start), fingerprint
        )
        store.image_size, store.jpeg_quality = stated.get("image_size"), stated.get("jpeg_quality")
        return store

    def __len__(self) -> int:
        return len(self.image_ids)

    def jpeg(self, row: int) -> bytes:
        """The JPEG file of image ``row``. IndexError outside 0 .. N-1; CaptionerError where the file ends too
        early."""
        row = int(row)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        begin, end = int(self._offsets[row]), int(self._offsets[row + 1])
        data = self.raw(begin, end - begin)
        if len(data) != end - begin:
            raise CaptionerError(f"{self.path}: truncated while it was read; make it again with the download stage")
        return data

    def image(self, row: int) -> Image.Image:
        """Image ``row`` decoded, mode RGB."""
        image = Image.open(io.BytesIO(self.jpeg(row)), formats=("JPEG",))
        return image.convert("RGB")

    def rows(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of these ids, (K,) int64. CaptionerError names the first id that the file lacks."""
        wanted = np.asarray(image_ids, dtype=np.int64).reshape(-1)
        rows = np.searchsorted(self.image_ids, wanted)
        found = self.image_ids[np.minimum(rows, len(self) - 1)] == wanted
        if not found.all():
            lost = wanted[~found]
            raise CaptionerError(
                f"{self.path}: no image with image id {lost[0]} ({len(lost)} of {len(wanted)} ids are missing); captions and images are"
                " not of one download"
            )
        return rows.astype(np.int64)

    def raw(self, begin: int, length: int) -> bytes:
        """``length`` bytes of the JPEG data from byte ``begin`` on; fewer at the end of a truncated file."""
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        pieces = []
        while length > 0:
            piece = os.pread(self._file, length, self._start + begin)
            if not piece:
                break
            pieces.append(piece)
            begin, length = begin + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def content_fingerprint(self) -> str:
        """The fingerprint computed afresh from the file's bytes."""
        digest = _digest(self.image_ids, self._offsets, self.sizes)
        total = int(self._offsets[-1])
        for begin in range(0, total, _PIECE):
            digest.update(self.raw(begin, min(_PIECE, total - begin)))
        return digest.hexdigest()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)
            self._file = None


def create_images(
    path: str | Path,
    image_ids: np.ndarray,
    sizes: np.ndarray,
    lengths: np.ndarray,
    data: Iterable[bytes],
    image_size: int | None = None,
    jpeg_quality: int | None = None,
) -> str:
    """Write an images file in one pass over its bytes, so that memory stays small whatever its size.

    Args:
        path: the new file; it is complete and synced to disk on return, but not moved anywhere.
        image_ids: (N,) ascending ids.
        sizes: (N, 2) height, width.
        lengths: (N,) bytes of each JPEG.
        data: the JPEG bytes in order of the ids, in pieces of any size.
        image_size, jpeg_quality: stated as attributes; no part of the fingerprint.

    Returns:
        The fingerprint. The same arguments give the same bytes.

    Raises:
        ValueError: no images, ids that do not rise, empty JPEGs, or data of another length than the lengths say.
    """
    ids = np.ascontiguousarray(image_ids, dtype="<i8")
    shapes = np.ascontiguousarray(sizes, dtype="<i4").reshape(-1, 2)
    offsets = np.concatenate([np.zeros(1, "<i8"), np.cumsum(lengths, dtype="<i8")]).astype("<i8")
    if (
        len(ids) == 0
        or np.any(np.diff(ids) <= 0)
        or np.any(np.diff(offsets) <= 0)
        or len(shapes) != len(ids)
        or len(offsets) != len(ids) + 1
    ):
        raise ValueError("image ids must rise, every image must have bytes and a size, and there must be one at least")
    total = int(offsets[-1])
    with h5py.File(path, "w") as file:
        for name, content in (("offset", offsets), ("image_id", ids), ("size", shapes)):
            _early(file, name, content.shape, content.dtype)[...] = content
        jpeg = _early(file, "jpeg", (total,), np.dtype("u1"))
        start = jpeg.id.get_offset()
        file.attrs["format_version"] = FORMAT_VERSION
        for key, value in zip(STATED, (image_size, jpeg_quality)):
            if value is not None:
                file.attrs[key] = value
        # written now with its final length, so that setting it at the end moves nothing
        file.attrs.create("fingerprint", "0" * 64, dtype=h5py.string_dtype("ascii", 64))
    digest, written = _digest(ids, offsets, shapes), 0
    with open(path, "r+b", buffering=0) as raw:
        os.posix_fallocate(raw.fileno(), start, total)  # a full disk is an error here, not halfway
        raw.seek(start)
        for piece in data:
            written += len(piece)
            if written > total:
                raise ValueError(f"more than the stated {total} bytes of JPEG data")
            view = memoryview(piece)
            while view:
                view = view[raw.write(view) :]
            digest.update(piece)
    if written != total:
        raise ValueError(f"{written} bytes of JPEG data, stated were {total}")
    fingerprint = digest.hexdigest()
    with h5py.File(path, "r+") as file:
        file.attrs.modify("fingerprint", np.bytes_(fingerprint))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return fingerprint


def write_images(path: str | Path, records: Iterable[tuple[int, bytes, int, int]]) -> str:
    """Write a small images file from (image id, JPEG bytes, height, width) in any order; returns its fingerprint.

    Everything is held in memory; ``create_images`` streams.
    """
    rows = sorted(records, key=lambda record: record[0])
    return create_images(
        path,
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[2:4] for row in rows], dtype=np.int32),
        np.array([len(row[1]) for row in rows], dtype=np.int64),
        (row[1] for row in rows),
    )


def _early(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """A contiguous dataset with its place in the file fixed at once, no time stamps (equal content, equal bytes), no
    fill."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    h5py.h5d.create(
        file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape), dcpl=plan
    )
    return file[name]


def _digest(image_ids: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> hashlib._Hash:
    digest = hashlib.sha256()
    for array, kind in ((image_ids, "<i8"), (offsets, "<i8"), (sizes, "<i4")):
        digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
    return digest
