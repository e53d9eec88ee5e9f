"""Write rows of a features file, in any number of processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from captioner.errors import CaptionerError
from captioner.features.checksums import crc32
from captioner.features.layout import Layout


class FeatureWriter:
    """Writes rows of a file made by ``create_features``; safe in any number of processes at once.

    A row counts as done only once its bytes are on the disk: call ``write`` for some rows, then ``sync``.
    """

    def __init__(self, path: str | Path) -> None:
        self.layout = Layout(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._written: list[tuple[int, int]] = []
        self._lock = threading.Lock()  # of the list

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, first: int, features: np.ndarray) -> None:
        """Write ``features`` (K, V, P, C) float16 to the rows from ``first`` on.

        Raises:
            CaptionerError: the disk is full or fails.
        """
        if (
            features.dtype != np.float16
            or features.shape[1:] != self.layout.shape[1:]
            or not 0 <= first <= self.layout.shape[0] - len(features)
        ):
            raise ValueError(
                f"{features.dtype} {features.shape} at row {first} does not fit features of shape {self.layout.shape}"
            )
        features = np.ascontiguousarray(features)
        self._pwrite(features.data.cast("B"), self.layout.offset + first * self.layout.row_size)
        if self.layout.checksums is not None:
            views = self.layout.shape[1]
            sums = crc32(features.reshape(len(features) * views, -1))
            self._pwrite(sums.data.cast("B"), self.layout.checksum_offset + 4 * first * views)
        with self._lock:
            self._written.append((first, len(features)))

    def sync(self) -> None:
        """Bring everything written so far to the disk, then mark its rows as done. Another thread may write further
        rows meanwhile."""
        with self._lock:
            written, self._written = self._written, []
        if not written:
            return
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise CaptionerError(
                f"{self.layout.path}: cannot be written ({error.strerror}); mend the disk and run again"
            ) from error
        for first, count in written:
            self._pwrite(memoryview(b"\x01" * count), self.layout.done_offset + first)

    def _pwrite(self, data: memoryview, position: int) -> None:
        while len(data):
            try:
                count = os.pwrite(self._descriptor, data, position)
            except OSError as error:
                raise CaptionerError(
                    f"{self.layout.path}: cannot be written ({error.strerror}); free the disk and run again"
                ) from error
            data, position = data[count:], position + count
