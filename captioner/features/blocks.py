"""One process's share of an extraction: decode, encode and write its blocks of rows, all three at once.

A block is ``batch_size`` rows with all their views, and each of its views is one batch of the encoder. Blocks are never split and
never differ: the same picture in a batch of another size differs in its last bits.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Callable, Iterator

import numpy as np
import torch

from captioner.errors import CaptionerError
from captioner.features.decoding import Decoder
from captioner.features.forward import PictureEncoder
from captioner.features.layout import FeatureWriter

_SYNC_SECONDS = 3.0
_QUEUE = 3


@dataclass
class _Block:
    """Computed features on their way to the disk."""

    first: int
    features: torch.Tensor  # (n, V, P, C) float16, in memory once ``ready`` is
    ready: torch.cuda.Event | None


def blocks_to_do(done: np.ndarray, batch_size: int, rank: int, world: int) -> list[tuple[int, int]]:
    """``(first row, rows)`` of the unfinished blocks of one process: every ``world``-th block, from number ``rank`` on."""
    count = len(done)
    blocks = [(first, min(batch_size, count - first)) for first in range(rank * batch_size, count, world * batch_size)]
    return [(first, size) for first, size in blocks if not done[first : first + size].all()]


def all_finite(features: np.ndarray) -> bool:
    """Whether a contiguous float16 array holds neither NaN nor infinity; by its bits, which numpy compares 10 times faster."""
    return int((features.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00


class _WriterThread:
    """Writes blocks beside the encoder's work and syncs them every few seconds."""

    def __init__(self, writer: FeatureWriter, encoder: str) -> None:
        self._writer, self._encoder = writer, encoder
        self._queue: queue.Queue[_Block | None] = queue.Queue(_QUEUE)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="features-writer", daemon=True)
        self._thread.start()

    def put(self, block: _Block) -> None:
        self._queue.put(block)
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Write and sync everything; raise what went wrong, if anything did."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        synced = time.monotonic()
        while (block := self._queue.get()) is not None:
            if self._error is not None:
                continue  # go on emptying the queue, or the encoder would wait for ever
            try:
                self._write(block)
                if time.monotonic() - synced > _SYNC_SECONDS:
                    self._writer.sync()
                    synced = time.monotonic()
            except BaseException as error:
                self._error = error
        try:
            self._writer.sync()
        except BaseException as error:
            self._error = self._error or error

    def _write(self, block: _Block) -> None:
        if block.ready is not None:
            block.ready.synchronize()
        features = block.features.numpy()
        if not all_finite(features):
            row, view = np.argwhere(~np.isfinite(features).all(axis=(2, 3)))[0]
            raise CaptionerError(
                f"{self._writer.layout.path}: {self._encoder} makes non-finite features of image {self._writer.layout.image_ids[block.first + row]} (view {view}): NaN, "
                "or beyond float16's 65504; use extract.precision=fp32, other extract.weights or another encoder"
            )
        self._writer.write(block.first, features)


def extract_blocks(
    blocks: list[tuple[int, int]],
    decoder: Decoder,
    encoder: PictureEncoder,
    writer: FeatureWriter,
    between: Callable[[int], bool],
) -> None:
    """Compute and write blocks of rows.

    Args:
        blocks: ``(first row, rows)`` of each.
        decoder: delivers their pictures.
        encoder: makes features of shape ``(P, C)`` of each view.
        writer: takes them.
        between: called with the rows of each block once it is computed; False stops the work. All computed blocks are then still
            written and synced.

    Raises:
        CaptionerError: a picture cannot be decoded, a feature is not finite (the image id is named), or the disk fails.
    """
    thread = _WriterThread(writer, encoder.encoder.name)
    try:
        for first, features, ready in _computed(blocks, decoder, encoder, writer.layout.shape[1:]):
            thread.put(_Block(first, features, ready))
            if not between(features.shape[0]):
                break
    except BaseException:
        try:
            thread.finish()
        except BaseException:
            pass  # the first fault is the one to tell
        raise
    thread.finish()


def _computed(
    blocks: list[tuple[int, int]], decoder: Decoder, encoder: PictureEncoder, shape: tuple[int, int, int]
) -> Iterator[tuple[int, torch.Tensor, torch.cuda.Event | None]]:
    """Features ``(n, V, P, C)`` float16 of each block in main memory, and on a GPU the event after which they are there."""
    ring = torch.from_numpy(decoder.slots)  # (R, V, B, S, S, 3)
    cuda = encoder.device.type == "cuda"
    pinned = cuda and _pin(decoder.slots)
    upload = torch.cuda.Stream(encoder.device) if cuda else None
    waiting = deque(blocks)
    asked: deque[tuple[int, int, int]] = deque()

    def ask(slot: int) -> None:
        if waiting:
            first, count = waiting.popleft()
            decoder.ask(slot, first, count)
            asked.append((slot, first, count))

    try:
        for slot in range(len(ring)):
            ask(slot)
        while asked:
            slot, first, count = asked.popleft()
            decoder.wait(slot)
            features = torch.empty((count, *shape), dtype=torch.float16, pin_memory=cuda)
            on_device = torch.empty_like(features, device=encoder.device) if cuda else features
            for view in range(shape[0]):
                batch = _upload(ring[slot, view, :count], encoder.device, upload, pinned)
                normalised = encoder.normalise(batch)
                if view == shape[0] - 1:
                    ask(slot)  # the pixels are copied; decoding may fill the slot while they are encoded
                on_device[:, view] = encoder.encode(normalised)
            ready = None
            if cuda:
                features.copy_(on_device, non_blocking=True)
                ready = torch.cuda.Event()
                ready.record(torch.cuda.current_stream(encoder.device))
            yield first, features, ready
    finally:
        if pinned:
            torch.cuda.synchronize(encoder.device)
            torch.cuda.cudart().cudaHostUnregister(decoder.slots.ctypes.data)


def _upload(pictures: torch.Tensor, device: torch.device, stream: torch.cuda.Stream | None, pinned: bool) -> torch.Tensor:
    """``(n, S, S, 3)`` uint8 on the device; on a GPU by a stream of its own, so that earlier batches are encoded meanwhile."""
    if stream is None:
        return pictures
    with torch.cuda.stream(stream):
        batch = pictures.to(device, non_blocking=pinned)
    stream.synchronize()
    batch.record_stream(torch.cuda.current_stream(device))
    return batch


def _pin(array: np.ndarray) -> bool:
    """Lock shared memory in place, so that a GPU reads it directly; False where the system does not let us."""
    result = torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0)
    return int(result) == 0
