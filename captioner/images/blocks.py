"""Stores images in blocks with several processes; a block is either complete or absent.

A block is two files in the sidecar: ``block-00012.bin`` with the concatenated JPEGs, then ``block-00012.json`` with
their sizes and a checksum. A block's bytes depend only on its images.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.images.decode import BadImage, encode, to_jpeg
from captioner.images.records import SceneSource, Source
from captioner.interrupts import StopSignal
from captioner.progress import Progress
from captioner.sidecar import write_atomically

BLOCK = 128  # images; about 4 MB at 256 pixels, at most a second of work


@dataclass(frozen=True)
class BlockMaker:
    """Writes blocks of images to ``folder``; sent to the worker processes."""

    folder: Path
    image_size: int
    quality: int

    def __call__(self, number: int, sources: list[Source]) -> int:
        """Write block ``number``, both files fsynced; returns the number of images."""
        data = bytearray()
        images: list[list[int] | str] = []
        for source in sources:
            try:
                jpeg, height, width = self._image(source)
            except BadImage as bad:
                images.append(bad.reason)
            else:
                data += jpeg
                images.append([len(jpeg), height, width])
        write_atomically(bin_path(self.folder, number), bytes(data))
        index = {"images": images, "bytes": len(data), "crc": zlib.crc32(data)}
        write_atomically(_index_path(self.folder, number), json.dumps(index, separators=(",", ":")))
        return len(sources)

    def _image(self, source: Source) -> tuple[bytes, int, int]:
        if isinstance(source, SceneSource):
            from captioner.images.scenes import describe, draw

            return encode(draw(describe(source.seed, source.index)), self.image_size, self.quality)
        return to_jpeg(source.read(), self.image_size, self.quality)


def bin_path(folder: Path, number: int) -> Path:
    """The file with the JPEG bytes of block ``number``."""
    return folder / f"block-{number:05d}.bin"


def read_block(folder: Path, number: int, count: int) -> list[list[int] | str] | None:
    """[bytes, height, width], or the reason for skipping it, of each of ``count`` images; None if the block is
    incomplete."""
    try:
        index = json.loads(_index_path(folder, number).read_bytes())
        images = index["images"]
        valid = (
            len(images) == count
            and os.path.getsize(bin_path(folder, number)) == index["bytes"]
            and zlib.crc32(bin_path(folder, number).read_bytes()) == index["crc"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return images if valid else None


def discard_block(folder: Path, number: int) -> None:
    """Delete a block, so that it will be written again."""
    _index_path(folder, number).unlink(missing_ok=True)
    bin_path(folder, number).unlink(missing_ok=True)


def make_blocks(
    maker: BlockMaker, jobs: Iterator[tuple[int, list[Source]]], workers: int, stop: StopSignal, progress: Progress
) -> None:
    """Write the blocks of ``jobs`` (number, sources) in ``workers`` processes; with one worker, in this process.

    Raises:
        Interrupted: a signal arrived; started blocks are finished.
        CaptionerError: a worker died, or the sidecar cannot be written.
    """
    try:
        if workers <= 1:
            for number, sources in jobs:
                progress.advance(maker(number, sources))
                stop.raise_if_requested()
        else:
            _in_processes(maker, jobs, workers, stop, progress)
        stop.raise_if_requested()
    except BrokenProcessPool as error:
        stop.raise_if_requested()
        raise CaptionerError(
            f"{maker.folder}: a worker process died (out of memory?); run again with fewer: -S runtime.workers=1"
        ) from error
    except OSError as error:
        raise CaptionerError(
            f"{maker.folder}: cannot be written ({error.strerror or error}); free the disk or fix its permissions "
            "and run again"
        ) from error
    finally:
        if hasattr(jobs, "close"):
            jobs.close()


def _in_processes(
    maker: BlockMaker, jobs: Iterable[tuple[int, list[Source]]], workers: int, stop: StopSignal, progress: Progress
) -> None:
    # spawn instead of fork: a forked child would keep the sidecar's lock after its parent was killed, and threads do
    # not survive a fork
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: set[Future] = set()
    try:
        for number, sources in jobs:
            with _interrupts_held():
                pending.add(pool.submit(maker, number, sources))
            if len(pending) >= 2 * workers:
                pending = _collect(pending, progress)
            if stop.requested:
                break
        while pending and not stop.requested:
            pending = _collect(pending, progress)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(pending: set[Future], progress: Progress) -> set[Future]:
    done, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
    for future in done:
        progress.advance(future.result())
    return pending


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started in this context ignore SIGINT, which Ctrl-C sends to every process of the terminal; only the
    main process handles it."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _start_worker() -> None:
    """Exit when the parent process dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _index_path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05d}.json"
