"""Writing rows in one thread while another syncs them and marks them as done."""

from __future__ import annotations

import threading

import numpy as np

from captioner.features.writer import FeatureWriter

_SYNC_SECONDS = 1.0
_SYNC_BYTES = 32 << 20  # a fast GPU makes a gigabyte a second, which must not all be synced at the end


class SyncedWriter:
    """Writes rows without waiting for the disk: a thread syncs them every second, and at once when 32 MB wait.

    Use as a context manager; on leaving it everything written is synced and marked. After a failed sync no further row
    is marked: the system reports lost bytes only once, and a later sync could mark rows that were among them.

    Raises:
        CaptionerError: the disk fails; at the next ``write`` or on leaving.
    """

    def __init__(self, writer: FeatureWriter) -> None:
        self.layout = writer.layout
        self._writer, self._waiting, self._due = writer, 0, threading.Event()
        self._left = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._sync, name="sync", daemon=True)

    def __enter__(self) -> SyncedWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        self._due.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def write(self, first: int, features: np.ndarray) -> None:
        """``FeatureWriter.write``: ``features`` (K, V, P, C) float16 to the rows from ``first`` on."""
        if self._error is not None:
            raise self._error
        self._writer.write(first, features)
        self._waiting += features.nbytes
        if self._waiting >= _SYNC_BYTES:
            self._waiting = 0
            self._due.set()

    def _sync(self) -> None:
        try:
            while not self._left:
                self._due.wait(_SYNC_SECONDS)
                self._due.clear()
                self._writer.sync()
            self._writer.sync()  # what was written during the last one
        except BaseException as error:
            self._error = error
