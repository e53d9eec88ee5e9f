"""One rank's shard of an extraction: its blocks of rows are decoded, encoded and written, all three at once.

A block is ``batch_size`` rows with all their views, and each view of it is one batch of the encoder. Blocks are never
split, because the features of an image depend in their last bits on the size of its batch.

On a CPU every thread encodes blocks of its own with one thread of arithmetic. Threads that share a batch wait for one
another, and their number changes the last bits of the result.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from captioner.errors import CaptionerError
from captioner.features.decoding import JpegPipeline
from captioner.features.forward import ImageEncoder
from captioner.features.syncing import SyncedWriter
from captioner.features.writer import FeatureWriter

_QUEUE = 3


@dataclass
class _Block:
    """Computed features on their way to the disk."""

    first: int
    features: torch.Tensor  # (n, V, P, C) float16, in main memory once ``ready`` is
    ready: torch.cuda.Event | None = None
    finite: torch.Tensor | None = None  # bool, checked on a GPU, valid once ``ready`` is; None: not checked yet


def blocks_to_do(done: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[tuple[int, int]]:
    """``(first row, rows)`` of a rank's unfinished blocks: every ``world_size``-th block, from block ``rank`` on."""
    count = len(done)
    starts = range(rank * batch_size, count, world_size * batch_size)
    blocks = [(first, min(batch_size, count - first)) for first in starts]
    return [(first, size) for first, size in blocks if not done[first : first + size].all()]


def all_finite(features: np.ndarray) -> bool:
    """Whether a contiguous float16 array holds neither NaN nor infinity; comparing its bits is 10 times as fast as
    ``np.isfinite``."""
    return int((features.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00


def extract_blocks(
    blocks: list[tuple[int, int]],
    pipeline: JpegPipeline,
    encoder: ImageEncoder,
    writer: FeatureWriter,
    threads: int,
    between: Callable[[int], bool],
) -> None:
    """Compute and write blocks of rows.

    Args:
        blocks: ``(first row, rows)`` of each.
        pipeline: decodes their images.
        encoder: computes features ``(P, C)`` of each view.
        writer: of the features file.
        threads: how many blocks are computed at once on a CPU; a GPU computes one.
        between: called with the number of rows after each block; False stops the work, after the blocks that are
            already begun.

    Raises:
        CaptionerError: an image cannot be decoded, a feature is not finite (the image id is named), or the disk fails.
    """
    cuda = encoder.device.type == "cuda"
    pinned = cuda and _pin(pipeline.slots)
    decoded = _DecodedBlocks(blocks, pipeline)
    results: queue.Queue[_Block | BaseException | None] = queue.Queue(_QUEUE)
    arguments = (decoded, encoder, writer.layout.shape[1:], pinned, results)
    threads = 1 if cuda else min(threads, max(1, len(blocks)))
    pool = [
        threading.Thread(target=_compute, args=arguments, name=f"encoder-{number}", daemon=True)
        for number in range(threads)
    ]
    for thread in pool:
        thread.start()
    try:
        with SyncedWriter(writer) as synced:
            _write_all(results, len(pool), decoded, synced, encoder.encoder.name, between)
    finally:
        decoded.stop()
        while any(thread.is_alive() for thread in pool):  # they may wait for a free place in the queue
            with contextlib.suppress(queue.Empty):
                results.get(timeout=0.05)
        if pinned:
            torch.cuda.synchronize(encoder.device)
            torch.cuda.cudart().cudaHostUnregister(pipeline.slots.ctypes.data)


def _write_all(
    results: queue.Queue[_Block | BaseException | None],
    computing: int,
    decoded: _DecodedBlocks,
    writer: SyncedWriter,
    encoder: str,
    between: Callable[[int], bool],
) -> None:
    error = None
    while computing:
        block = results.get()
        if block is None:
            computing -= 1
        elif isinstance(block, BaseException):
            error = error or block
            decoded.stop()
        else:
            _write(block, writer, encoder)
            if not between(len(block.features)):
                decoded.stop()
    if error is not None:
        raise error


def _write(block: _Block, writer: SyncedWriter, encoder: str) -> None:
    if block.ready is not None:
        block.ready.synchronize()
    features = block.features.numpy()
    if not (all_finite(features) if block.finite is None else block.finite):
        row, view = np.argwhere(~np.isfinite(features).all(axis=(2, 3)))[0]
        image_id = writer.layout.image_ids[block.first + row]
        raise CaptionerError(
            f"{writer.layout.path}: {encoder} makes non-finite features of image {image_id} (view {view}): NaN, "
            "or beyond float16's 65504; use extract.precision=fp32, other extract.weights or another encoder"
        )
    writer.write(block.first, features)


class _DecodedBlocks:
    """The decoded blocks, in order, for any number of threads."""

    def __init__(self, blocks: list[tuple[int, int]], pipeline: JpegPipeline) -> None:
        self._pipeline, self._lock, self._stopped = pipeline, threading.Lock(), False
        self._waiting, self._asked = deque(blocks), deque[tuple[int, int, int]]()
        for slot in range(len(pipeline.slots)):
            self.give_back(slot)

    def take(self) -> tuple[int, int, int] | None:
        """``(slot, first row, rows)`` of the next block once it is decoded; None at the end or after ``stop``."""
        with self._lock:
            if self._stopped or not self._asked:
                return None
            slot, first, count = self._asked.popleft()
            self._pipeline.wait(slot)
            return slot, first, count

    def give_back(self, slot: int) -> None:
        """Decode the next block into a slot whose pixels have been copied."""
        with self._lock:
            if self._waiting and not self._stopped:
                first, count = self._waiting.popleft()
                self._pipeline.submit(slot, first, count)
                self._asked.append((slot, first, count))

    def stop(self) -> None:
        self._stopped = True

    @property
    def shape(self) -> tuple[int, int]:
        """Images in a whole batch, and their side."""
        return self._pipeline.slots.shape[2], self._pipeline.slots.shape[3]

    def pixels(self, slot: int, view: int, count: int) -> torch.Tensor:
        """``(n, S, S, 3)`` uint8."""
        return torch.from_numpy(self._pipeline.slots[slot, view, :count])


def _compute(
    decoded: _DecodedBlocks,
    encoder: ImageEncoder,
    shape: tuple[int, int, int],
    pinned: bool,
    results: queue.Queue[_Block | BaseException | None],
) -> None:
    """Body of an encoding thread: features ``(n, V, P, C)`` float16, block after block."""
    try:
        if encoder.device.type == "cuda":
            torch.cuda.set_device(encoder.device)
            encoder.record(*decoded.shape)
            upload = torch.cuda.Stream(encoder.device)
            while (block := decoded.take()) is not None:
                results.put(_on_gpu(decoded, encoder, shape, block, upload, pinned))
        else:
            torch.set_num_threads(1)
            while (block := decoded.take()) is not None:
                results.put(_on_cpu(decoded, encoder, shape, block))
    except BaseException as error:
        results.put(error)
    finally:
        results.put(None)


def _on_cpu(
    decoded: _DecodedBlocks, encoder: ImageEncoder, shape: tuple[int, int, int], block: tuple[int, int, int]
) -> _Block:
    slot, first, count = block
    features = torch.empty((count, *shape), dtype=torch.float16)
    for view in range(shape[0]):
        normalised = encoder.normalise(decoded.pixels(slot, view, count))
        if view == shape[0] - 1:
            decoded.give_back(slot)  # the pixels are copied
        features[:, view] = encoder.encode(normalised)
    return _Block(first, features)


def _on_gpu(
    decoded: _DecodedBlocks,
    encoder: ImageEncoder,
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    upload: torch.cuda.Stream,
    pinned: bool,
) -> _Block:
    slot, first, count = block
    features = torch.empty((count, *shape), dtype=torch.float16, device=encoder.device)
    for view in range(shape[0]):
        pixels = _upload(decoded.pixels(slot, view, count), encoder.device, upload, pinned)
        if view == shape[0] - 1:
            decoded.give_back(slot)  # the pixels are copied
        features[:, view] = encoder.features(pixels)
    in_memory, finite = (
        torch.empty(features.shape, dtype=features.dtype, pin_memory=True),
        torch.empty((), dtype=torch.bool, pin_memory=True),
    )
    finite.copy_(features.isfinite().all(), non_blocking=True)
    in_memory.copy_(features, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(encoder.device))
    return _Block(first, in_memory, ready, finite)


def _upload(images: torch.Tensor, device: torch.device, stream: torch.cuda.Stream, pinned: bool) -> torch.Tensor:
    """Copy ``(n, S, S, 3)`` uint8 to the GPU on its own stream, while earlier batches are encoded."""
    with torch.cuda.stream(stream):
        batch = images.to(device, non_blocking=pinned)
    stream.synchronize()
    batch.record_stream(torch.cuda.current_stream(device))
    return batch


def _pin(array: np.ndarray) -> bool:
    """Page-lock shared memory, so that a GPU reads it directly; False where the system refuses."""
    result = torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0)
    return int(result) == 0
