"""The features file on disk: how it is created, and how rows are written into it.

``features`` f2 ``(N, V, P, C)`` contiguous, ``image_id`` i8 ``(N,)``, ``done`` u1 ``(N,)``; everything else is in
attributes. HDF5 only creates the file; after that rows are written at their offset with ``pwrite``. So any number of
processes write at once without a lock, and no kill can corrupt the file's metadata, which never changes again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from captioner.errors import CaptionerError
from captioner.fingerprint import canonical_json, fingerprint
from captioner.sidecar import sync_folder

FORMAT_VERSION = 2  # 2: strings of fixed length (a damaged bit in the heap of variable ones crashes the HDF5 library)
PAGE = 4096
_ROOM_FOR_METADATA = 1 << 20
# of ImageNet's RGB pixels, the normalisation of every torchvision classifier
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DEFAULT_FACTS: dict[str, Any] = {
    "format_version": FORMAT_VERSION,
    "version": 1,
    "images": "0" * 64,
    "encoder": "none",
    "layer": "none",
    "weights_name": "random",
    "weights_sha256": "0" * 64,
    "grid": [1, 1],
    "precision": "fp32",
    "batch_size": 1,
    "preprocessing": {"fit": "squash", "image_size": 224, "mean": list(MEAN), "std": list(STD)},
    "views": 1,
    "augmentation": None,
}
"""The keys of a features file's facts; ``write_features`` takes the values from here that it is not given."""
STATED = ("weights_seed", "image_size", "jpeg_quality", "weights_license")
"""Optional attributes that a model needs for further images: the seed of random weights, how ``images.h5`` stored its
images, and the licence of the encoder's weights. Older files lack them."""


def storage_size(shape: tuple[int, int, int, int]) -> int:
    """Bytes of the file for ``(N, V, P, C)`` float16 features, to within its few kilobytes of metadata."""
    return int(np.prod(shape, dtype=np.int64)) * 2 + shape[0] * (9 + 4 * shape[1]) + _ROOM_FOR_METADATA


def require_space(path: Path, shape: tuple[int, int, int, int]) -> None:
    """Refuse to begin a file that the disk cannot hold.

    Raises:
        CaptionerError: less is free than the file needs; both sizes are named.
    """
    need, free = storage_size(shape), shutil.disk_usage(path.parent).free
    if need > free:
        raise CaptionerError(
            f"{path}: the features need {need / 1e9:.3f} GB and the disk has {free / 1e9:.3f} GB free; "
            "free some, or lower extract.grid or extract.views"
        )


def create_features(
    path: str | Path,
    shape: tuple[int, int, int, int],
    image_ids: Iterable[int],
    facts: dict[str, Any],
    stated: dict[str, Any] | None = None,
) -> None:
    """Make a features file of full size whose rows are all still to be written.

    Args:
        path: the file, replaced if it exists. It appears there only once it is whole.
        shape: ``(N, V, P, C)``: images, views, grid positions, channels.
        image_ids: ``(N,)`` int64, no two alike; row i belongs to image_ids[i].
        facts: everything that determines the features (``DEFAULT_FACTS`` names the keys); no path, time or device.
        stated: further attributes, some of ``STATED``; no part of the fingerprint.

    Raises:
        CaptionerError: the shape and the facts do not fit, an image id comes twice, or the disk is too small.
    """
    path = Path(path)
    ids = np.asarray(list(image_ids) if not isinstance(image_ids, np.ndarray) else image_ids, dtype=np.int64)
    count, views, positions, channels = (int(size) for size in shape)
    if min(count, views, positions, channels) < 1 or ids.shape != (count,):
        raise CaptionerError(
            f"{path}: features of shape {tuple(shape)} for {len(ids)} images; "
            "every dimension must be at least 1 and the first the number of images"
        )
    if len(np.unique(ids)) != count:
        values, counts = np.unique(ids, return_counts=True)
        raise CaptionerError(
            f"{path}: image id {values[counts > 1][0]} comes more than once; every image may have one row"
        )
    if facts["views"] != views or facts["grid"][0] * facts["grid"][1] != positions:
        raise CaptionerError(
            f"{path}: features of shape {tuple(shape)} do not fit {facts['views']} views of a {facts['grid']} grid"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.unlink(missing_ok=True)
    require_space(path, (count, views, positions, channels))
    try:
        _lay_out(draft, (count, views, positions, channels), ids, facts, stated or {})
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CaptionerError(
                f"{path}: the disk is full ({storage_size(shape) / 1e9:.3f} GB are needed); free some and run again"
            ) from error
        raise


def _lay_out(
    path: Path, shape: tuple[int, int, int, int], ids: np.ndarray, facts: dict[str, Any], stated: dict[str, Any]
) -> None:
    # alignment: the rows begin on a page, which direct and memory-mapped reads like; only the large data set is
    # affected
    with h5py.File(path, "w", alignment_threshold=PAGE, alignment_interval=PAGE) as file:
        for name, dtype, size in (
            ("features", "<f2", shape),
            ("image_id", "<i8", shape[:1]),
            ("done", "u1", shape[:1]),
            ("crc32", "<u4", shape[:2]),
        ):
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_layout(h5py.h5d.CONTIGUOUS)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # else the data set has no offset yet
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # else creating the file writes all of it
            properties.set_obj_track_times(False)  # else the bytes differ from run to run
            kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
            h5py.h5d.create(
                file.id,
                name.encode(),
                kind,
                h5py.h5s.create_simple(size),
                properties,
            )
        file["image_id"][...] = ids
        file["done"][...] = 0
        file["crc32"][...] = 0
        attributes = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint(facts),
            "facts": canonical_json(facts),
            "preprocessing": canonical_json(facts["preprocessing"]),
            "images_fingerprint": facts["images"],
            "grid": np.asarray(facts["grid"], dtype=np.int64),
            **{key: facts[key] for key in ("encoder", "layer", "weights_name", "weights_sha256", "views")},
            **{key: stated[key] for key in STATED if key in stated},
        }
        for key, value in sorted(attributes.items()):
            if isinstance(value, str):
                text = value.encode()
                file.attrs.create(key, text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
            else:
                file.attrs[key] = value
    descriptor = os.open(path, os.O_RDWR)
    try:  # the file is sparse until now: take the disk space before the work, not in its middle
        os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Layout:
    """Where things lie in a features file, read once through h5py; no handle stays open.

    Attributes:
        shape: ``(N, V, P, C)``.
        image_ids: ``(N,)`` int64.
        done: ``(N,)`` bool, as it was when the file was opened.
        checksums: ``(N, V)`` uint32, CRC-32 of each view of an image; None in files of older versions.
        offset, done_offset, checksum_offset: bytes from the start of the file to the features, the done marks and the
            checksums (-1 without these).
        facts, attributes: what determines the features, and the attributes as they stand.

    Raises:
        CaptionerError: no such file, no HDF5 file, or no features file of this format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CaptionerError(f"{path}: there is no such features file; run the extract stage first")
        try:
            with h5py.File(self.path, "r") as file:
                self._read(file)
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CaptionerError(
                f"{path}: no whole features file ({_first_line(error)}); delete it and run the extract stage again"
            ) from error
        self.size = os.stat(self.path).st_size

    def _read(self, file: h5py.File) -> None:
        names = ["features", "image_id", "done"] + (["crc32"] if "crc32" in file else [])
        for name in names:  # a link could lead to a file elsewhere
            if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
                raise ValueError(f"{name} is no data set of this file")
        features, done = file["features"], file["done"]
        if int(file.attrs["format_version"]) != FORMAT_VERSION:
            raise ValueError(f"format version {file.attrs['format_version']}, this program reads {FORMAT_VERSION}")
        if features.dtype != np.dtype("<f2") or features.ndim != 4 or done.dtype != np.dtype("u1"):
            raise ValueError(f"features are {features.dtype} of {features.ndim} dimensions, not float16 of 4")
        count, views, positions, channels = (int(size) for size in features.shape)
        self.shape = (count, views, positions, channels)
        if file["image_id"].shape != self.shape[:1] or done.shape != self.shape[:1] or min(self.shape) < 1:
            raise ValueError(
                f"features, image_id and done have the lengths {len(features)}, {len(file['image_id'])}, {len(done)}"
            )
        if features.external or features.is_virtual or features.id.get_offset() is None or done.id.get_offset() is None:
            raise ValueError("features are not stored contiguously in this file")
        self.offset, self.done_offset = int(features.id.get_offset()), int(done.id.get_offset())
        self.checksums, self.checksum_offset = None, -1
        if "crc32" in file:
            stored = file["crc32"]
            if stored.shape != self.shape[:2] or stored.dtype != np.dtype("<u4") or stored.id.get_offset() is None:
                raise ValueError(f"its checksums are {stored.dtype} of the shape {stored.shape}")
            self.checksums, self.checksum_offset = stored[...], int(stored.id.get_offset())
        self.attributes = {
            key: value.decode() if isinstance(value, bytes) else value for key, value in file.attrs.items()
        }
        self.facts = json.loads(self.attributes["facts"])
        if (
            "fingerprint" not in self.attributes
            or not isinstance(self.facts, dict)
            or set(DEFAULT_FACTS) - set(self.facts)
        ):
            raise ValueError("its fingerprint or facts are not whole")
        rows, columns = self.facts["grid"]
        if not all(isinstance(size, int) for size in (rows, columns, self.facts["views"])):
            raise ValueError("its grid or views are no numbers")
        self.image_ids = file["image_id"][...].astype(np.int64)
        self.done = done[...].astype(bool)

    @property
    def row_size(self) -> int:
        """Bytes of one image's features, all views."""
        return 2 * self.shape[1] * self.shape[2] * self.shape[3]

    @property
    def expected_size(self) -> int:
        """Bytes that the file must have at least to hold all its rows and marks."""
        checksums_end = self.checksum_offset + 4 * self.shape[0] * self.shape[1]
        return max(self.offset + self.row_size * self.shape[0], self.done_offset + self.shape[0], checksums_end)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
