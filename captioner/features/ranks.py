"""What the ranks of an extraction tell one another, through torch.distributed. A single process needs no group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from captioner.errors import CaptionerError
from captioner.interrupts import StopSignal
from captioner.launch import Rank, end_process_group

# A rank may wait hours for a slower one. When a rank dies its connections close, which is an error at once.
_TIMEOUT = timedelta(days=30)


@contextmanager
def process_group(rank: Rank) -> Iterator[None]:
    """torch.distributed's default group (gloo, between CPUs) for the block."""
    if rank.world_size == 1:
        yield
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        end_process_group()


def broadcast(value: Any, rank: Rank, stop: StopSignal) -> Any:
    """Rank 0's ``value``, on every rank.

    Raises:
        CaptionerError: another rank has ended.
        Interrupted: after a signal.
    """
    if rank.world_size == 1:
        return value
    import torch.distributed

    values = [value]
    _run(lambda: torch.distributed.broadcast_object_list(values, src=0), stop)
    return values[0]


def barrier(rank: Rank, stop: StopSignal) -> None:
    """Return once every rank has come here; raises as ``broadcast`` does."""
    if rank.world_size > 1:
        import torch.distributed

        _run(torch.distributed.barrier, stop)


def _run(collective: Callable[[], object], stop: StopSignal) -> None:
    try:
        collective()
    except RuntimeError as error:  # a closed connection
        stop.raise_if_requested()
        raise CaptionerError(
            "another process of this extraction has ended; see its message, and run the same command again"
        ) from error
