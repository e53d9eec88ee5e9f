"""The device that arithmetic runs on, and how many threads it takes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from captioner.cores import core_count
from captioner.errors import CaptionerError
from captioner.launch import Rank

Result = TypeVar("Result")
capture_lock = threading.Lock()
"""Held while a training pass is recorded as a CUDA graph, and by other threads that use the GPU meanwhile."""


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """The device that ``runtime.device`` means: ``cpu``, ``cuda:N``, or ``auto`` and ``cuda``, which give each process
    of a machine its own GPU.

    Raises:
        CaptionerError: no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{local_rank % max(1, torch.cuda.device_count())}"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise CaptionerError(f"runtime.device={device}: no such device; use cpu, cuda, cuda:N or auto") from error
    if chosen.type not in ("cpu", "cuda"):
        raise CaptionerError(f"runtime.device={device}: it must be cpu, cuda, cuda:N or auto")
    if chosen.type == "cuda" and not (torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()):
        raise CaptionerError(f"runtime.device={device}: torch sees {torch.cuda.device_count()} GPUs; use cpu or auto")
    return chosen


def prepare_device(device: str, threads: int = 0, rank: Rank | None = None) -> torch.device:
    """Set the number of threads (0: the available cores divided by the processes of this machine) and choose a device.

    The number is set explicitly because it decides how sums are split, and so the last bits of a result.

    Raises:
        CaptionerError: no such device here.
    """
    rank = rank or Rank()
    # torch then asks for huge pages, which saves a tenth of the time on tensors of some megabytes
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(
        threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, core_count() // rank.local_world_size)
    )
    chosen = resolve_device(device, rank.local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
    return chosen


def keep_freed_memory() -> None:
    """Let this process keep the memory of one batch for the next one.

    glibc returns blocks of some megabytes to the kernel at once, which then clears them again for the next use. That
    costs a sixth of a CPU's time in extraction (squeezenet1_1), and in training it makes the loss of 900 rows of 9,500
    logits 2.5 times as slow. Without glibc nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1)):
        mallopt(option, value)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """``array`` on ``device``; a GPU copies asynchronously, from pinned memory.

    A copy from ordinary memory would wait until the GPU has finished everything queued before.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def warm_up(work: Callable[[], object], device: torch.device) -> None:
    """Run ``work`` once outside of a graph, on a side stream as during capture: first calls allocate and compile."""
    here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        work()
    here.wait_stream(aside)


def record(work: Callable[[], Result], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture ``work`` (after ``warm_up``) as a CUDA graph. Every replay overwrites the tensors of the result.

    A replay repeats the same kernels on the same shapes at the same addresses. Other threads may use the GPU during
    the capture.
    """
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return graph, result
