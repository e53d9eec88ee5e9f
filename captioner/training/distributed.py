"""Several ranks: torch.distributed's process group, and the few collective operations that training needs.

``DistributedDataParallel`` averages the gradients; torchrun, or ``captioner.launch``, starts the processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import click
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captioner.launch import Rank, end_process_group

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=30)  # a rank that dies is noticed by the launcher, not by this


class Group:
    """The ranks of a run as one of them sees it. Every method but ``shard`` must be called by all ranks in turn."""

    def __init__(self, rank: Rank | None = None, device: torch.device | str = "cpu") -> None:
        own = rank or Rank()
        self.rank, self.world_size, self.device = own.rank, own.world_size, torch.device(device)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``world_size``-th item, from the rank's own on."""
        return items[self.rank :: self.world_size]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank's is True."""
        if self.world_size == 1:
            return list(flags)
        return [count > 0 for count in self.sum(torch.tensor(flags, dtype=torch.int32, device=self.device)).tolist()]

    def gather(self, item: T) -> list[T]:
        """The items of all ranks, in order."""
        if self.world_size == 1:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def broadcast(self, item: T) -> T:
        """The item of rank 0."""
        if self.world_size == 1:
            return item
        items: list[Any] = [item]
        dist.broadcast_object_list(items, src=0)
        return items[0]

    def wrap(self, module: nn.Module, find_unused_parameters: bool) -> nn.Module:
        """The module in ``DistributedDataParallel``, which first gives all ranks the weights of rank 0.

        Args:
            find_unused_parameters: some parameters have no gradient; they keep none, as in a single process.
        """
        if self.world_size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=find_unused_parameters)


@contextmanager
def process_group(rank: Rank, device: torch.device) -> Iterator[Group]:
    """The group of all ranks that the launcher started: NCCL where each has a GPU of its own, else gloo."""
    if rank.world_size == 1:
        yield Group(rank, device)
        return
    own_gpu = device.type == "cuda" and torch.cuda.device_count() >= rank.local_world_size
    backend = "nccl" if own_gpu and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    if rank.is_main:
        click.echo(f"train: {rank.world_size} processes, {backend}", err=True)
    try:
        yield Group(rank, device)
    finally:
        end_process_group()


def rank_seed(seed: int, rank: int, epoch: int, step: int) -> int:
    """Seed of a rank's generator at the start, or where a checkpoint has no state for it."""
    return int(np.random.SeedSequence([seed, rank, epoch, step]).generate_state(1, np.uint64)[0])
