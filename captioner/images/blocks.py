"""The work of a download in blocks of images, by several processes, each block finished or not there at all.

A block is two files in the sidecar: ``block-00012.bin`` with its JPEGs back to back, and then ``block-00012.json`` with
their sizes and a checksum. What a block holds depends on its images alone, not on who made it or when.
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

BLOCK = 128  # images; some 4 MB at 256 pixels, a second of work or less


@dataclass(frozen=True)
class BlockMaker:
    """Makes blocks in ``folder`` from images' sources; sent to the worker processes."""

    folder: Path
    image_size: int
    quality: int

    def __call__(self, number: int, sources: list[Source]) -> int:
        """Write block ``number``, both files synced to disk; returns how many images it has."""
        data, images = bytearray(), []
        for source in sources:
            try:
                jpeg, height, width = self._image(source)
            except BadImage as bad:
                images.append(bad.reason)
            else:
                data += jpeg
                images.append([len(jpeg), height, width])
        write_atomically(bin_path(self.folder, number), bytes(data))
        index = {"pictures": images, "bytes": len(data), "crc": zlib.crc32(data)}
        write_atomically(_index_path(self.folder, number), json.dumps(index, separators=(",", ":")))
        return len(sources)

    def _image(self, source: Source) -> tuple[bytes, int, int]:
        if isinstance(source, SceneSource):
            from captioner.images.scenes import describe, draw

            return encode(draw(describe(source.seed, source.index)), self.image_size, self.quality)
        return to_jpeg(source.read(), self.image_size, self.quality)


def bin_path(folder: Path, number: int) -> Path:
    """The JPEG bytes of block ``number``."""
    return folder / f"block-{number:05d}.bin"


def read_block(folder: Path, number: int, count: int) -> list[list[int] | str] | None:
    """[bytes, height, width] or the reason why it is left out, for each of ``count`` images; None where the block is
    not finished."""
    try:
        index = json.loads(_index_path(folder, number).read_bytes())
        images = index["pictures"]
        sound = (
            len(images) == count
            and os.path.getsize(bin_path(folder, number)) == index["bytes"]
            and zlib.crc32(bin_path(folder, number).read_bytes()) == index["crc"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return images if sound else None


def discard_block(folder: Path, number: int) -> None:
    """Delete a block, so that it is made again."""
    _index_path(folder, number).unlink(missing_ok=True)
    bin_path(folder, number).unlink(missing_ok=True)


def make_blocks(
    maker: BlockMaker, jobs: Iterator[tuple[int, list[Source]]], workers: int, stop: StopSignal, progress: Progress
) -> None:
    """Make the blocks of ``jobs`` (number, sources) in ``workers`` processes; with one, in this process.

    Raises:
        Interrupted: a signal came; the blocks begun are finished.
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
            f"{maker.folder}: cannot be written ({error.strerror or error}); free the disk or mend its permissions and run again"
        ) from error
    finally:
        if hasattr(jobs, "close"):
            jobs.close()


def _in_processes(
    maker: BlockMaker, jobs: Iterable[tuple[int, list[Source]]], workers: int, stop: StopSignal, progress: Progress
) -> None:
    # spawned, not forked: a forked child would hold the sidecar's lock after its parent was killed, and threads do not
    # survive a fork
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
    """Processes begun in here never see SIGINT: Ctrl-C goes to every process of a terminal, but is this one's to handle
    (afterwards)."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _start_worker() -> None:
    """A worker whose parent was killed ends too."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _index_path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05d}.json"
