"""Three ways to read random rows of a features file: from memory, from disk, from a GPU.

None of them goes through HDF5, whose lock lets only one thread read at a time: they read at the file offset of the
rows.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from captioner.device import to_device
from captioner.errors import CaptionerError
from captioner.features.checksums import RowChecks, row_checks

_READING_THREADS = 4
_UPLOAD_BYTES = 256 << 20


class FeatureReader:
    """Reads batches of rows.

    Attributes:
        where: ``ram``, ``disk`` or ``gpu``.
        device: where the batches that ``read`` returns lie: the GPU for ``gpu``, else the CPU.
    """

    where = ""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self.shape, self.device = shape, device

    def read(
        self,
        rows: np.ndarray | torch.Tensor | Iterable[int],
        views: np.ndarray | torch.Tensor | Iterable[int] | None = None,
    ) -> torch.Tensor:
        """A copy of some rows.

        Args:
            rows: ``(B,)`` int64, each from 0 to N - 1, in any order and repeated at will.
            views: ``(B,)`` int64, which view of each; None: view 0.

        Returns:
            ``(B, P, C)`` float16, contiguous, on ``self.device`` (page-locked where the batches go on to a GPU).

        Raises:
            IndexError: a row or view that the file does not have.
        """
        return self._gather(self._flat(rows, views))

    def close(self) -> None:
        """Release what the reader holds."""

    def __enter__(self) -> FeatureReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flat(
        self, rows: np.ndarray | torch.Tensor | Iterable[int], views: np.ndarray | torch.Tensor | Iterable[int] | None
    ) -> np.ndarray:
        """Index (B,) of each (row, view) in the features seen as (N * V, P, C)."""
        rows = _indices(rows, self.shape[0], "row")
        if views is None:
            return rows * self.shape[1]
        views = _indices(views, self.shape[1], "view")
        if views.shape != rows.shape:
            raise IndexError(f"{len(rows)} rows and {len(views)} views")
        return rows * self.shape[1] + views

    def _gather(self, flat: np.ndarray) -> torch.Tensor:
        raise NotImplementedError


def _indices(values: np.ndarray | torch.Tensor | Iterable[int], bound: int, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.cpu().numpy()
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.int64).reshape(-1)
    if array.size and not (array.min() >= 0 and array.max() < bound):
        raise IndexError(f"{name} {array.min() if array.min() < 0 else array.max()} of {bound}")
    return array


class RamReader(FeatureReader):
    """A memory map of the rows: the kernel's page cache holds the file, shared by every process that reads it."""

    where = "ram"

    def __init__(self, path: Path, offset: int, shape: tuple[int, int, int, int], pin: bool, checks: RowChecks) -> None:
        super().__init__(shape, torch.device("cpu"))
        self._checks = checks
        size = 2 * int(np.prod(shape, dtype=np.int64))
        with open(path, "rb") as file:
            base = offset - offset % mmap.ALLOCATIONGRANULARITY
            self._map = mmap.mmap(file.fileno(), offset - base + size, access=mmap.ACCESS_COPY, offset=base)
        self._map.madvise(mmap.MADV_WILLNEED)
        rows = np.frombuffer(self._map, dtype=np.float16, count=size // 2, offset=offset - base)
        self._features = rows.reshape(shape[0] * shape[1], shape[2] * shape[3])  # (N * V, P * C)
        self._pin = pin

    def _gather(self, flat: np.ndarray) -> torch.Tensor:
        batch = torch.empty((len(flat), self._features.shape[1]), dtype=torch.float16, pin_memory=self._pin)
        # one thread saturates the memory bandwidth; mode="clip" writes without an intermediate buffer
        np.take(self._features, flat, axis=0, out=batch.numpy(), mode="clip")
        for place in self._checks.unchecked(flat):
            self._checks.check(int(flat[place]), batch[place].numpy().data)
        return batch.view(-1, *self.shape[2:])

    def close(self) -> None:
        self._features = np.empty((0, 0), dtype=np.float16)


class DiskReader(FeatureReader):
    """``preadv`` in a few threads, straight into the batch: for files that do not fit into memory.

    The kernel is told all rows of a batch first and fetches them in parallel, which keeps a disk busier than many
    waiting threads.
    """

    where = "disk"

    def __init__(self, path: Path, offset: int, shape: tuple[int, int, int, int], pin: bool, checks: RowChecks) -> None:
        super().__init__(shape, torch.device("cpu"))
        self._checks = checks
        self._path, self._offset, self._pin = path, offset, pin
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead: the next row is somewhere else
        self._pool: ThreadPoolExecutor | None = None
        self._owner = os.getpid()

    def _gather(self, flat: np.ndarray) -> torch.Tensor:
        batch = torch.empty((len(flat), self.shape[2] * self.shape[3]), dtype=torch.float16, pin_memory=self._pin)
        if self._pool is None or self._owner != os.getpid():  # threads do not survive a fork
            self._pool, self._owner = ThreadPoolExecutor(_READING_THREADS), os.getpid()
        target = batch.numpy().reshape(-1).view(np.uint8).data
        size = 2 * batch.shape[1]
        for index in flat.tolist():
            os.posix_fadvise(self._descriptor, self._offset + index * size, size, os.POSIX_FADV_WILLNEED)
        threads = min(_READING_THREADS, len(flat))

        def fill(first: int) -> None:
            for place in range(first, len(flat), threads):
                row = target[place * size : (place + 1) * size]
                self._read(row, self._offset + int(flat[place]) * size)
                self._checks.check(int(flat[place]), row)

        list(self._pool.map(fill, range(threads)))
        return batch.view(-1, *self.shape[2:])

    def _read(self, target: memoryview, position: int) -> None:
        while len(target):
            count = os.preadv(self._descriptor, [target], position)
            if count == 0:
                raise CaptionerError(
                    f"{self._path}: ends in the middle of its rows; delete it and run the extract stage again"
                )
            target, position = target[count:], position + count

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class GpuReader(FeatureReader):
    """All features (N, V, P, C) float16 as a tensor in GPU memory."""

    where = "gpu"

    def __init__(self, features: torch.Tensor) -> None:
        count, views, positions, channels = features.shape
        super().__init__((count, views, positions, channels), features.device)
        self._features = features.view(features.shape[0] * features.shape[1], -1)  # (N * V, P * C)

    @classmethod
    def load(
        cls, path: Path, offset: int, shape: tuple[int, int, int, int], device: torch.device, checks: RowChecks
    ) -> GpuReader:
        """Copy the whole file to ``device``, some rows at a time."""
        features = torch.empty(shape, dtype=torch.float16, device=device)
        rows = features.view(shape[0] * shape[1], *shape[2:])
        with DiskReader(path, offset, shape, device.type == "cuda", checks) as disk:
            step = max(1, _UPLOAD_BYTES // (2 * shape[2] * shape[3]))
            for first in range(0, len(rows), step):
                part = disk._gather(np.arange(first, min(first + step, len(rows))))
                rows[first : first + len(part)].copy_(part)
        return cls(features)

    def _gather(self, flat: np.ndarray) -> torch.Tensor:
        return self._features.index_select(0, to_device(flat, self.device)).view(-1, *self.shape[2:])

    def close(self) -> None:
        self._features = torch.empty(0)


def open_reader(
    path: Path,
    offset: int,
    shape: tuple[int, int, int, int],
    where: str = "auto",
    device: str | torch.device = "cpu",
    checksums: np.ndarray | None = None,
) -> FeatureReader:
    """A reader of the features that lie at ``offset`` of ``path``.

    Args:
        shape: ``(N, V, P, C)``.
        where: ``gpu`` (the whole file in the memory of ``device``), ``ram`` (memory map), ``disk``, or ``auto``: the
            first that the file fits into.
        device: where the batches are used.
        checksums: (N, V) uint32; rows are compared with them when they are first read. None: they are not.

    Raises:
        CaptionerError: ``gpu`` without a GPU, or with one that is too small; or it finds a damaged row, as the other
            readers do when they read it.
    """
    checks = row_checks(path, checksums)
    device = torch.device(device)
    size = 2 * int(np.prod(shape, dtype=np.int64))
    if where == "auto":
        # the rest of the GPU's memory is for the model and its activations
        if device.type == "cuda" and size < 0.6 * torch.cuda.mem_get_info(device)[0]:
            where = "gpu"
        else:
            where = "ram" if size < 0.8 * available_memory() else "disk"
    if where == "gpu":
        if device.type == "cpu":
            raise CaptionerError("runtime.features_on=gpu needs a GPU and runtime.device is cpu; use ram, disk or auto")
        try:
            return GpuReader.load(path, offset, shape, device, checks)
        except torch.cuda.OutOfMemoryError as error:
            raise CaptionerError(
                f"{path}: {size / 1e9:.1f} GB of features do not fit into the memory of {device}; "
                "use runtime.features_on=ram or auto"
            ) from error
    if where not in ("ram", "disk"):
        raise CaptionerError(f"runtime.features_on={where}: it must be one of auto, gpu, ram, disk")
    return (RamReader if where == "ram" else DiskReader)(path, offset, shape, device.type == "cuda", checks)


def available_memory() -> int:
    """Bytes that this process may still use: the machine's available memory, or its control group's limit where that is
    lower."""
    available = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit))
    except (OSError, ValueError):
        pass
    return available
