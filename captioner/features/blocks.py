"""One process's share of an extraction: decode, encode and write its blocks of rows, all three at once.

A block is ``batch_size`` rows with all their views, and each of its views is one batch of the encoder. Blocks are never
split and
never differ: the same picture in a batch of another size differs in its last bits.

On a CPU every thread encodes blocks of its own with one thread of arithmetic. Threads that share a batch give other
last bits when their number changes, and wait for one another; so the number of threads could change the result, and
here it cannot.
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
from captioner.features.decoding import Decoder
from captioner.features.forward import PictureEncoder
from captioner.features.layout import FeatureWriter
from captioner.features.syncing import SyncedWriter

_QUEUE = 3


@dataclass
class _Block:
    """Computed features on their way to the disk."""

    first: int
    features: torch.Tensor  # (n, V, P, C) float16, in main memory once ``ready`` is
    ready: torch.cuda.Event | None = None
    finite: torch.Tensor | None = None  # bool, what a GPU found, likewise; None: to be found out


def blocks_to_do(done: np.ndarray, batch_size: int, rank: int, world: int) -> list[tuple[int, int]]:
    """``(first row, rows)`` of the unfinished blocks of one process: every ``world``-th block, from number ``rank``
    on."""
    count = len(done)
    blocks = [(first, min(batch_size, count - first)) for first in range(rank * batch_size, count, world * batch_size)]
    return [(first, size) for first, size in blocks if not done[first : first + size].all()]


def all_finite(features: np.ndarray) -> bool:
    """Whether a contiguous float16 array holds neither NaN nor infinity; by its bits, which numpy compares 10 times
    faster."""
    return int((features.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00


def extract_blocks(
    blocks: list[tuple[int, int]],
    decoder: Decoder,
    encoder: PictureEncoder,
    writer: FeatureWriter,
    threads: int,
    between: Callable[[int], bool],
) -> None:
    """Compute and write blocks of rows.

    Args:
        blocks: ``(first row, rows)`` of each.
        decoder: delivers their pictures.
        encoder: makes features of shape ``(P, C)`` of each view.
        writer: takes them.
        threads: how many blocks are computed at once on a CPU; a GPU computes one.
        between: called with the rows of each block that was written; False stops the work. Blocks already begun are
            still finished.

    Raises:
        CaptionerError: a picture cannot be decoded, a feature is not finite (the image id is named), or the disk fails.
    """
    cuda = encoder.device.type == "cuda"
    pinned = cuda and _pin(decoder.slots)
    pictures = _Pictures(blocks, decoder)
    results: queue.Queue[_Block | BaseException | None] = queue.Queue(_QUEUE)
    arguments = (pictures, encoder, writer.layout.shape[1:], pinned, results)
    threads = 1 if cuda else min(threads, max(1, len(blocks)))
    pool = [
        threading.Thread(target=_compute, args=arguments, name=f"encoder-{number}", daemon=True)
        for number in range(threads)
    ]
    for thread in pool:
        thread.start()
    try:
        with SyncedWriter(writer) as synced:
            _write_all(results, len(pool), pictures, synced, encoder.encoder.name, between)
    finally:
        pictures.stop()
        while any(thread.is_alive() for thread in pool):  # they may wait for room in the queue
            with contextlib.suppress(queue.Empty):
                results.get(timeout=0.05)
        if pinned:
            torch.cuda.synchronize(encoder.device)
            torch.cuda.cudart().cudaHostUnregister(decoder.slots.ctypes.data)


def _write_all(
    results: queue.Queue[_Block | BaseException | None],
    computing: int,
    pictures: _Pictures,
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
            pictures.stop()
        else:
            _write(block, writer, encoder)
            if not between(len(block.features)):
                pictures.stop()
    if error is not None:
        raise error


def _write(block: _Block, writer: SyncedWriter, encoder: str) -> None:
    if block.ready is not None:
        block.ready.synchronize()
    features = block.features.numpy()
    if not (all_finite(features) if block.finite is None else block.finite):
        row, view = np.argwhere(~np.isfinite(features).all(axis=(2, 3)))[0]
        raise CaptionerError(
            f"{writer.layout.path}: {encoder} makes non-finite features of image {writer.layout.image_ids[block.first + row]} (view {view}): NaN, "
            "or beyond float16's 65504; use extract.precision=fp32, other extract.weights or another encoder"
        )
    writer.write(block.first, features)


class _Pictures:
    """The decoded blocks, in order, for any number of threads."""

    def __init__(self, blocks: list[tuple[int, int]], decoder: Decoder) -> None:
        self._decoder, self._lock, self._stopped = decoder, threading.Lock(), False
        self._waiting, self._asked = deque(blocks), deque[tuple[int, int, int]]()
        for slot in range(len(decoder.slots)):
            self.give_back(slot)

    def take(self) -> tuple[int, int, int] | None:
        """``(slot, first row, rows)`` of the next block once it is decoded; None where there is no more, or the work
        was stopped."""
        with self._lock:
            if self._stopped or not self._asked:
                return None
            slot, first, count = self._asked.popleft()
            self._decoder.wait(slot)
            return slot, first, count

    def give_back(self, slot: int) -> None:
        """The slot's pixels were copied: decode a further block into it."""
        with self._lock:
            if self._waiting and not self._stopped:
                first, count = self._waiting.popleft()
                self._decoder.ask(slot, first, count)
                self._asked.append((slot, first, count))

    def stop(self) -> None:
        self._stopped = True

    @property
    def shape(self) -> tuple[int, int]:
        """Pictures in a whole batch, and their side."""
        return self._decoder.slots.shape[2:4]

    def pixels(self, slot: int, view: int, count: int) -> torch.Tensor:
        """``(n, S, S, 3)`` uint8."""
        return torch.from_numpy(self._decoder.slots[slot, view, :count])


def _compute(
    pictures: _Pictures,
    encoder: PictureEncoder,
    shape: tuple[int, int, int],
    pinned: bool,
    results: queue.Queue[_Block | BaseException | None],
) -> None:
    """A thread's work: features ``(n, V, P, C)`` float16 of one block after the other."""
    try:
        if encoder.device.type == "cuda":
            torch.cuda.set_device(encoder.device)
            encoder.record(*pictures.shape)
            upload = torch.cuda.Stream(encoder.device)
            while (block := pictures.take()) is not None:
                results.put(_on_gpu(pictures, encoder, shape, block, upload, pinned))
        else:
            torch.set_num_threads(1)
            while (block := pictures.take()) is not None:
                results.put(_on_cpu(pictures, encoder, shape, block))
    except BaseException as error:
        results.put(error)
    finally:
        results.put(None)


def _on_cpu(
    pictures: _Pictures, encoder: PictureEncoder, shape: tuple[int, int, int], block: tuple[int, int, int]
) -> _Block:
    slot, first, count = block
    features = torch.empty((count, *shape), dtype=torch.float16)
    for view in range(shape[0]):
        normalised = encoder.normalise(pictures.pixels(slot, view, count))
        if view == shape[0] - 1:
            pictures.give_back(slot)  # the pixels are copied
        features[:, view] = encoder.encode(normalised)
    return _Block(first, features)


def _on_gpu(
    pictures: _Pictures,
    encoder: PictureEncoder,
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    upload: torch.cuda.Stream,
    pinned: bool,
) -> _Block:
    slot, first, count = block
    features = torch.empty((count, *shape), dtype=torch.float16, device=encoder.device)
    for view in range(shape[0]):
        pixels = _upload(pictures.pixels(slot, view, count), encoder.device, upload, pinned)
        if view == shape[0] - 1:
            pictures.give_back(slot)  # the pixels are copied
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


def _upload(pictures: torch.Tensor, device: torch.device, stream: torch.cuda.Stream, pinned: bool) -> torch.Tensor:
    """``(n, S, S, 3)`` uint8 on the GPU, by a stream of its own, so that earlier batches are encoded meanwhile."""
    with torch.cuda.stream(stream):
        batch = pictures.to(device, non_blocking=pinned)
    stream.synchronize()
    batch.record_stream(torch.cuda.current_stream(device))
    return batch


def _pin(array: np.ndarray) -> bool:
    """Lock shared memory in place, so that a GPU reads it directly; False where the system does not let us."""
    result = torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0)
    return int(result) == 0
