"""CRC-32 of each stored view of an image: damage on a disk or in a copy shows when a row is first read.

A reader checks a row once in a process. zlib's CRC-32 runs at some 4 GB/s on one core and outside the interpreter's
lock; ``python -m benchmarks.checksums`` has what that costs a training.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from captioner.errors import CaptionerError


def crc32(features: np.ndarray) -> np.ndarray:
    """CRC-32 of each row of contiguous features (M, ...): (M,) uint32."""
    rows = features.reshape(len(features), -1).view(np.uint8)
    return np.fromiter((zlib.crc32(row.data) for row in rows), dtype=np.uint32, count=len(rows))


class RowChecks:
    """Which rows of one file this process has found sound.

    Args:
        path: the file, for messages.
        expected: (N, V) uint32 checksums as stored; None: the file has none, and nothing is checked.
    """

    def __init__(self, path: Path, expected: np.ndarray | None) -> None:
        self._path, self._views = path, 1 if expected is None else expected.shape[1]
        self._expected = None if expected is None else expected.reshape(-1)
        self._sound = np.ones(0, bool) if expected is None else np.zeros(expected.size, bool)

    def unchecked(self, flat: np.ndarray) -> Sequence[int]:
        """Positions in ``flat`` (B,), indices of (row, view) pairs, whose bytes are still to be checked."""
        if self._expected is None:
            return ()
        return np.flatnonzero(~self._sound[flat]).tolist()

    def check(self, index: int, data: memoryview) -> None:
        """Compare the bytes of the (row, view) pair ``index`` with their checksum.

        Raises:
            CaptionerError: they differ.
        """
        if self._expected is None or self._sound[index]:
            return
        if zlib.crc32(data) != self._expected[index]:
            raise CaptionerError(
                f"{self._path}: row {index // self._views} is damaged (its checksum differs); captioner verify shows "
                "what else is; delete the file and run the extract stage again, or fetch it again"
            )
        self._sound[index] = True


_CHECKS: dict[tuple, RowChecks] = {}


def row_checks(path: Path, expected: np.ndarray | None) -> RowChecks:
    """The checks of a file, shared by all its readers in this process."""
    if expected is None:
        return RowChecks(path, None)
    state = path.stat()
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    return _CHECKS.setdefault(key, RowChecks(path, expected))
