"""The processes that read images, and how they are asked."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

import captioner
from captioner.features.reading import ReadImage, Recipe, read_image

# images that are asked for at once: every answer wakes a thread here, which takes the interpreter's lock from those
# that compute
_TOGETHER = 8


class ImageReaders:
    """Reads images in processes of their own, ahead of their use; each starts with its first image and ends with
    this process.

    Args:
        recipe: what images become.
        processes: how many read at once.
    """

    def __init__(self, recipe: Recipe, processes: int) -> None:
        self._recipe = recipe
        self._own, self._lock = threading.local(), threading.Lock()
        self._children: set[_Child] = set()
        self._closed = False
        self._pool = ThreadPoolExecutor(processes, "image-reader")
        self._pool.submit(self._child)  # the first process starts while an encoder is built

    def read(self, sources: Sequence[str | Image.Image], shown: bool) -> list[Future[list[ReadImage]]]:
        """Begin to read files, and to prepare open images (here: their bytes are decoded already), a few at a time,
        in their order."""
        parts = [sources[first : first + _TOGETHER] for first in range(0, len(sources), _TOGETHER)]
        return [self._pool.submit(self._read, part, shown) for part in parts]

    def close(self) -> None:
        """End all processes; what was asked for and is not read yet, never will be."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        for child in children:
            child.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for child in children:
            child.end()

    def _read(self, sources: Sequence[str | Image.Image], shown: bool) -> list[ReadImage]:
        files = [source for source in sources if isinstance(source, str)]
        found = iter(self._read_files(files, shown)) if files else iter(())
        return [next(found) if isinstance(source, str) else self._prepare(source, shown) for source in sources]

    def _prepare(self, image: Image.Image, shown: bool) -> ReadImage:
        with self._lock:  # Python's filters of warnings are of the whole process
            return read_image(image, self._recipe, shown)

    def _read_files(self, paths: list[str], shown: bool) -> list[ReadImage]:
        child = self._child()
        found = child.read(paths, self._recipe, shown)
        if found is not None:
            return found
        status = child.end()
        with self._lock:
            self._children.discard(child)
        self._own.child = None
        if (
            len(paths) > 1 or child.answered
        ):  # one by one, each with a process that is fresh for it: else the wrong one would be blamed
            return [read for path in paths for read in self._read_files([path], shown)]
        return [ReadImage(None, f"the process that decoded it ended with status {status}, perhaps for want of memory")]

    def _child(self) -> _Child:
        """This thread's process."""
        child: _Child | None = getattr(self._own, "child", None)
        if child is None:
            with self._lock:
                if self._closed:
                    raise RuntimeError("these readers are closed")
                child = self._own.child = _Child()
                self._children.add(child)
        return child


class _Child:
    def __init__(self) -> None:
        package = str(Path(captioner.__file__).resolve().parent.parent)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "captioner.features.reading"]
        self.answered = False  # whether it has ever read something
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, cast("io.BufferedReader", self._process.stdout)

    def read(self, paths: list[str], recipe: Recipe, shown: bool) -> list[ReadImage] | None:
        """None where the process ended over them."""
        task = {"paths": paths, "recipe": asdict(recipe), "shown": shown}
        try:
            self._stdin.write(json.dumps(task).encode() + b"\n")
            self._stdin.flush()
        except OSError:
            return None
        answer = self._stdout.readline()
        if not answer.endswith(b"\n"):
            return None
        facts = json.loads(answer)
        sound = sum(fact["error"] is None for fact in facts)
        pixels = np.empty((sound, recipe.side, recipe.side, 3), np.uint8)
        shapes = [(fact["size"][1], fact["size"][0], 3) for fact in facts if fact["size"]]
        images = [np.empty(shape, np.uint8) for shape in shapes]
        for array in (pixels, *images) if sound else ():
            if self._stdout.readinto(array.data.cast("B")) < array.nbytes:
                return None
        self.answered = True
        squares, small = iter(pixels), iter(images)
        return [
            ReadImage(None, fact["error"])
            if fact["error"] is not None
            else ReadImage(
                next(squares), None, Image.fromarray(next(small)) if fact["size"] else None, tuple(fact["box"])
            )
            for fact in facts
        ]

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int:
        """Its exit status, once it has ended."""
        self._process.kill()
        status = self._process.wait()
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):  # what it was told last never reached it
                stream.close()
        return status
