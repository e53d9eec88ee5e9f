"""The processes that read pictures, and how they are asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

import captioner
from captioner.features.reading import ReadPicture, Recipe, read_picture


class PictureReaders:
    """Reads pictures in processes of their own, ahead of their use; each starts with its first picture and ends with this process.

    Args:
        recipe: what pictures become.
        processes: how many read at once.
    """

    def __init__(self, recipe: Recipe, processes: int) -> None:
        self._recipe = recipe
        self._own, self._lock = threading.local(), threading.Lock()
        self._children: set[_Child] = set()
        self._closed = False
        self._pool = ThreadPoolExecutor(processes, "picture-reader")
        self._pool.submit(self._child)  # the first process starts while an encoder is built

    def read(self, source: str | Image.Image, shown: bool) -> Future[ReadPicture]:
        """Begin to read a file, or to prepare an open picture (here: its bytes are decoded already)."""
        return self._pool.submit(self._read, source, shown)

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

    def _read(self, source: str | Image.Image, shown: bool) -> ReadPicture:
        if isinstance(source, Image.Image):
            with self._lock:  # Python's filters of warnings are of the whole process
                return read_picture(source, self._recipe, shown)
        child = self._child()
        found = child.read(source, self._recipe, shown)
        if found is not None:
            return found
        status = child.end()
        with self._lock:
            self._children.discard(child)
        self._own.child = None
        return ReadPicture(None, f"the process that decoded it ended with status {status}, perhaps for want of memory")

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
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def read(self, path: str, recipe: Recipe, shown: bool) -> ReadPicture | None:
        """None where the process ended over it."""
        task = {"path": path, "recipe": asdict(recipe), "shown": shown}
        try:
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            return None
        facts = json.loads(answer)
        if facts["error"] is not None:
            return ReadPicture(None, facts["error"])
        pixels, picture = np.empty((recipe.side, recipe.side, 3), np.uint8), None
        if self._process.stdout.readinto(memoryview(pixels).cast("B")) < pixels.nbytes:
            return None
        if facts["size"]:
            width, height = facts["size"]
            data = self._process.stdout.read(width * height * 3)
            if len(data) < width * height * 3:
                return None
            picture = Image.frombytes("RGB", (width, height), data)
        return ReadPicture(pixels, None, picture, tuple(facts["box"]))

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int:
        """Its exit status, once it has ended."""
        self._process.kill()
        status = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                stream.close()
            except OSError:  # what it was told last never reached it
                pass
        return status
