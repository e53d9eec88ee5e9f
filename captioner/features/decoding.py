"""Decoding processes that hand over pixels in shared memory.

A decoding process is a small program (``python -m captioner.features.decoding``) rather than a DataLoader worker: it
shares no lock, thread or library state with the process that runs the encoder, imports no torch, starts in a fraction
of a second, and ends when its input ends, also after a SIGKILL of its parent. Pixels lie in a ring of slots in
anonymous shared memory, which no kill can leave behind. All processes take jobs from one pipe; writes to a pipe are
atomic up to 4 KB.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

import captioner
from captioner.errors import CaptionerError
from captioner.features.preprocess import Preprocessing, square
from captioner.images.store import ImageStore

_JOB = struct.Struct("<qqqq")  # slot, index in the slot, first row, images
_ANSWER = struct.Struct("<qqq")  # slot, images, first row where decoding failed, or -1
_JOB_IMAGES = 4
_MOST_JOBS = 256  # in a block; the jobs of all slots must fit into a pipe (64 KB), or both sides would wait for ever
_RING_BYTES = 256 << 20


class JpegPipeline:
    """Decodes, crops and resizes blocks of images ahead of their use.

    Args:
        store: the images.
        preprocessing: how each becomes the encoder's input.
        views: V, views of each image.
        block: B, the most images in a block.
        processes: decoding processes.

    Attributes:
        slots: ``(R, V, B, S, S, 3)`` uint8, a ring of R blocks.
    """

    def __init__(self, store: ImageStore, preprocessing: Preprocessing, views: int, block: int, processes: int) -> None:
        self._store, self._preprocessing, self._views, self._block = store, preprocessing, views, block
        side = preprocessing.image_size
        block_bytes = views * block * side * side * 3
        count = max(2, min(6, _RING_BYTES // block_bytes))
        self._memory = os.memfd_create("captioner-images", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, count * block_bytes)
        self._map = mmap.mmap(self._memory, count * block_bytes)
        self.slots = np.frombuffer(self._map, dtype=np.uint8).reshape(count, views, block, side, side, 3)
        self._missing: list[int] = [0] * count
        jobs, self._jobs = os.pipe()
        self._answers, answers = os.pipe()
        self._ready = select.poll()  # select() knows no descriptors from 1,024 on
        self._ready.register(self._answers, select.POLLIN)
        task = {
            "images": str(Path(store.path).absolute()),
            "preprocessing": asdict(preprocessing),
            "shape": self.slots.shape,
            "memory": self._memory,
            "jobs": jobs,
            "answers": answers,
        }
        package = str(Path(captioner.__file__).resolve().parent.parent)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        command = [sys.executable, "-m", "captioner.features.decoding", json.dumps(task)]
        try:
            self._processes = [
                subprocess.Popen(command, pass_fds=(self._memory, jobs, answers), env=environment)
                for _ in range(processes)
            ]
        finally:
            os.close(jobs)
            os.close(answers)

    def __enter__(self) -> JpegPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._jobs)
        for process in self._processes:
            process.kill()
            process.wait()
        os.close(self._answers)
        os.close(self._memory)

    def submit(self, slot: int, first: int, count: int) -> None:
        """Begin to decode ``count`` images from row ``first`` into a slot that is free."""
        self._missing[slot] = count
        size = max(_JOB_IMAGES, -(-count // _MOST_JOBS))
        for index in range(0, count, size):
            try:
                os.write(self._jobs, _JOB.pack(slot, index, first + index, min(size, count - index)))
            except BrokenPipeError:  # no process is left to read; ``wait`` raises
                return

    def wait(self, slot: int) -> None:
        """Return once the slot is decoded.

        Raises:
            CaptionerError: an image cannot be decoded (its image id is named), or a decoding process ended.
        """
        while self._missing[slot]:
            if not self._ready.poll(1000):  # milliseconds
                if any(process.poll() is not None for process in self._processes):
                    raise CaptionerError(
                        "a decoding process ended before its work, perhaps for want of memory; "
                        "lower runtime.workers and run again"
                    )
                continue
            answer = os.read(self._answers, _ANSWER.size)
            if not answer:
                raise CaptionerError(
                    "all decoding processes ended before their work, perhaps for want of memory; "
                    "lower runtime.workers and run again"
                )
            done_slot, count, failed = _ANSWER.unpack(answer)
            if failed >= 0:
                self._explain(failed)
            self._missing[done_slot] -= count

    def _explain(self, row: int) -> None:
        reason = "a decoding process failed"
        try:
            _decode(self._store, self._preprocessing, row, self._views)
        except Exception as error:  # any error of a decoder means that the image is bad
            reason = " ".join(str(error).split()) or type(error).__name__
        raise CaptionerError(
            f"{self._store.path}: image {self._store.image_ids[row]} cannot be decoded ({reason}); "
            "make the file again with the download stage"
        )


def _decode(store: ImageStore, preprocessing: Preprocessing, row: int, views: int) -> list[np.ndarray]:
    """All views of one image, each ``(S, S, 3)`` uint8."""
    image = store.image(row)
    return [square(image, preprocessing, int(store.image_ids[row]), view) for view in range(views)]


def _work(task: dict) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent stops this process; these may reach the whole group
        signal.signal(number, signal.SIG_IGN)
    # a batch job does not preempt the encoder, and so leaves it the core's cache, whenever a slot is free
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    store, preprocessing, shape = ImageStore.open(task["images"]), Preprocessing(**task["preprocessing"]), task["shape"]
    ring = np.frombuffer(mmap.mmap(task["memory"], int(np.prod(shape))), dtype=np.uint8).reshape(shape)
    while job := os.read(task["jobs"], _JOB.size):
        slot, start, first, count = _JOB.unpack(job)
        failed = -1
        for index in range(count):
            try:
                for view, pixels in enumerate(_decode(store, preprocessing, first + index, shape[1])):
                    ring[slot, view, start + index] = pixels
            except Exception:  # the parent decodes this image again for the error message
                failed = first + index
                break
        try:
            os.write(task["answers"], _ANSWER.pack(slot, count, failed))
        except BrokenPipeError:
            return


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
