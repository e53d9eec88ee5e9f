"""``images.h5``: all images of a data set as concatenated JPEG files.

    jpeg       (B,)   uint8, contiguous: all JPEG files, concatenated
    offset     (N+1,) int64: image n is jpeg[offset[n]:offset[n+1]]
    image_id   (N,)   int64, ascending
    size       (N, 2) int32: height, width in pixels
    attributes: format_version, fingerprint (SHA-256 of all four), and how the download stage stored the images:
                image_size, jpeg_quality (not in older files)

Images are read without h5py: the offset of the data set in the file is looked up once, then ``os.pread`` needs no lock,
no cache, and no handle that breaks across a fork.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py  # type: ignore[import-untyped,unused-ignore]
import numpy as np
from PIL import Image

from captioner.errors import CaptionerError

FORMAT_VERSION = 1
STATED = ("image_size", "jpeg_quality")
"""Optional attributes: how the images were stored, for models that caption other images later."""
_CHUNK = 1 << 22


class ImageStore:
    """Reads an ``images.h5``; picklable, and safe across forks and threads.

    Attributes:
        path: the file.
        image_ids: (N,) int64, ascending.
        sizes: (N, 2) int32, (height, width) in pixels.
        fingerprint: SHA-256 (hex) of ids, offsets, sizes and JPEG bytes, from the file's attribute.
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
        """Read and check the index of ``path``.

        Raises:
            CaptionerError: the file is missing, truncated, not HDF5 or of another format, or its offsets or ids are out
                of order.
        """
        path = Path(path)
        remedy = "create it again with the download stage"
        try:
            with h5py.File(path, "r") as file:
                version = file.attrs.get("format_version")
                missing = [name for name in ("jpeg", "offset", "image_id", "size") if name not in file]
                if version is None or missing or "fingerprint" not in file.attrs:
                    raise CaptionerError(
                        f"{path}: not an images file (lacks {', '.join(missing) or 'its attributes'}); {remedy}"
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
                raise CaptionerError(f"{path}: not found; run the download stage first") from error
            raise CaptionerError(f"{path}: cannot be read as an images file ({error}); {remedy}") from error
        count = len(image_ids)
        if offsets.shape != (count + 1,) or sizes.shape != (count, 2) or start is None or count == 0:
            raise CaptionerError(
                f"{path}: {count} image ids, but offsets {offsets.shape} and sizes {sizes.shape}; {remedy}"
            )
        if offsets[0] != 0 or offsets[-1] != length or np.any(np.diff(offsets) <= 0):
            raise CaptionerError(f"{path}: its offsets do not increase from 0 to the {length:,} JPEG bytes; {remedy}")
        if np.any(np.diff(image_ids) <= 0):
            raise CaptionerError(f"{path}: its image ids do not increase; {remedy}")
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
        """The JPEG bytes of image ``row``; IndexError outside 0 .. N-1, CaptionerError if the file is truncated."""
        row = int(row)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        begin, end = int(self._offsets[row]), int(self._offsets[row + 1])
        data = self.raw(begin, end - begin)
        if len(data) != end - begin:
            raise CaptionerError(f"{self.path}: truncated while it was read; create it again with the download stage")
        return data

    def image(self, row: int) -> Image.Image:
        """Image ``row``, decoded, mode RGB."""
        image = Image.open(io.BytesIO(self.jpeg(row)), formats=("JPEG",))
        return image.convert("RGB")

    def rows(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows (K,) int64 of image ids; CaptionerError if the file lacks one."""
        wanted = np.asarray(image_ids, dtype=np.int64).reshape(-1)
        rows = np.searchsorted(self.image_ids, wanted)
        found = self.image_ids[np.minimum(rows, len(self) - 1)] == wanted
        if not found.all():
            lost = wanted[~found]
            raise CaptionerError(
                f"{self.path}: no image with image id {lost[0]} ({len(lost)} of {len(wanted)} ids are missing); "
                "captions and images "
                "come from different downloads"
            )
        return rows.astype(np.int64)

    def raw(self, begin: int, length: int) -> bytes:
        """``length`` bytes of the JPEG data from byte ``begin`` on; fewer at the end of a truncated file."""
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        parts = []
        while length > 0:
            part = os.pread(self._file, length, self._start + begin)
            if not part:
                break
            parts.append(part)
            begin, length = begin + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def content_fingerprint(self) -> str:
        """The fingerprint, computed from the file's bytes."""
        digest = _digest(self.image_ids, self._offsets, self.sizes)
        total = int(self._offsets[-1])
        for begin in range(0, total, _CHUNK):
            digest.update(self.raw(begin, min(_CHUNK, total - begin)))
        return digest.hexdigest()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            os.close(file)
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
    """Write an images file in one pass over the JPEG bytes, with little memory.

    Args:
        path: the new file; complete and fsynced on return.
        image_ids: (N,) ascending ids.
        sizes: (N, 2) height, width.
        lengths: (N,) bytes of each JPEG.
        data: the JPEG bytes in order of the ids, in chunks of any size.
        image_size, jpeg_quality: stated as attributes; no part of the fingerprint.

    Returns:
        The fingerprint. The same arguments give the same bytes.

    Raises:
        ValueError: no images, ids that do not increase, empty JPEGs, or data that does not match ``lengths``.
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
        raise ValueError(
            "image ids must increase, every image must have bytes and a size, and there must be at least one"
        )
    total = int(offsets[-1])
    with h5py.File(path, "w") as file:
        for name, content in (("offset", offsets), ("image_id", ids), ("size", shapes)):
            _create_contiguous(file, name, content.shape, content.dtype)[...] = content
        jpeg = _create_contiguous(file, "jpeg", (total,), np.dtype("u1"))
        start = jpeg.id.get_offset()
        file.attrs["format_version"] = FORMAT_VERSION
        for key, value in zip(STATED, (image_size, jpeg_quality)):
            if value is not None:
                file.attrs[key] = value
        # created with its final length, so that setting it at the end moves nothing
        file.attrs.create("fingerprint", "0" * 64, dtype=h5py.string_dtype("ascii", 64))
    digest, written = _digest(ids, offsets, shapes), 0
    with open(path, "r+b", buffering=0) as raw:
        os.posix_fallocate(raw.fileno(), start, total)  # fails here if the disk is too small
        raw.seek(start)
        for chunk in data:
            written += len(chunk)
            if written > total:
                raise ValueError(f"more than the stated {total} bytes of JPEG data")
            view = memoryview(chunk)
            while view:
                view = view[raw.write(view) :]
            digest.update(chunk)
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

    Holds everything in memory; ``create_images`` streams.
    """
    rows = sorted(records, key=lambda record: record[0])
    return create_images(
        path,
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[2:4] for row in rows], dtype=np.int32),
        np.array([len(row[1]) for row in rows], dtype=np.int64),
        (row[1] for row in rows),
    )


def _create_contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """A contiguous dataset, allocated immediately, without time stamps (reproducible bytes) and without fill values."""
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
