"""Data-parallel training: the processes of a run, and the sums that they make together.

Every process holds the whole decoder and computes its share of each batch; gradients are added up in one flat buffer,
and all do the same update. Without other processes nothing here does anything, and torch.distributed is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import click
import numpy as np
import torch
from torch import Tensor

from captioner.errors import CaptionerError, Interrupted
from captioner.interrupts import StopSignal
from captioner.processes import LocalProcesses, Rank, Store
from captioner.training.lifeline import Follower, Leader
from captioner.vocabulary.vocabulary import PAD

T = TypeVar("T")
_NO_TIMEOUT = timedelta(days=7)  # the lifeline says when a process is gone; one that is merely slow is waited for


class Group:
    """The processes of a run, as one of them sees it.

    Args:
        rank: which one this is.
        device: where its tensors are.
        store: of all of them; not needed by a single process.
        line: to rank 0, or of rank 0 to the others.

    Attributes:
        rank, world, device: as given.
        flags: what this process wants; ``sum_gradients`` carries it along, ``carried`` tells what anybody wanted.

    Collective operations (all methods but ``share`` and ``carried``) must be called by every process, in the same
    order.

    Raises:
        CaptionerError: (any collective operation) another process has ended; it is named.
    """

    def __init__(
        self,
        rank: Rank = Rank(),
        device: torch.device = torch.device("cpu"),
        store: Store | None = None,
        line: Leader | Follower | None = None,
    ) -> None:
        self.rank, self.world, self.device = rank.rank, rank.world, device
        self.flags: Callable[[], Sequence[bool]] = tuple
        self._store, self._line, self._on_cpu = store, line, True
        self._flat = self._carried = torch.empty(0)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of ``items``, which are dealt out in turn."""
        return items[self.rank :: self.world]

    def __enter__(self) -> Group:
        if self.world > 1:
            import torch.distributed

            backend = self._backend()
            self._on_cpu = backend == "gloo"
            if self.leads:
                click.echo(f"train: {self.world} processes, {backend}", err=True)
            self._call(
                torch.distributed.init_process_group,
                backend,
                store=self._store.torch_store,
                rank=self.rank,
                world_size=self.world,
                timeout=_NO_TIMEOUT,
            )
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.world == 1:
            return
        if kind is None:
            self._line.bye()
        if kind in (None, Interrupted) or self._on_cpu:  # else NCCL would wait here for a process that is gone
            torch.distributed.destroy_process_group()

    def all_reduce_(self, flat: Tensor) -> Tensor:
        """The sum over all processes, in place; the same bits on each of them."""
        if self.world > 1:
            there = self._there(flat)
            self._call(torch.distributed.all_reduce, there)
            if there is not flat:
                flat.copy_(there)
        return flat

    def sum_gradients(self, parameters: Sequence[Tensor], figures: Tensor) -> Tensor:
        """Replace all gradients by their sums over the processes, in one operation; a process without gradients adds
        nothing.

        Args:
            figures: a scalar or (N,), of the same N in all processes.

        Returns:
            The sums of everybody's ``figures``.
        """
        if self.world == 1:
            return figures
        nothing = parameters[0].new_zeros(())
        parts = [
            nothing.expand(parameter.numel()) if parameter.grad is None else parameter.grad.reshape(-1)
            for parameter in parameters
        ]
        sizes = [len(part) for part in parts]
        wanted = torch.tensor([float(flag) for flag in self.flags()], dtype=nothing.dtype).to(
            self.device, non_blocking=True
        )
        rest = torch.cat([figures.reshape(-1).to(nothing.dtype), wanted])
        if len(self._flat) != sum(sizes) + len(rest):
            self._flat = nothing.new_empty(
                sum(sizes) + len(rest)
            )  # kept: at every step the system would have to clear it anew
        self.all_reduce_(torch.cat([*parts, rest], out=self._flat))
        *parts, rest = self._flat.split([*sizes, len(rest)])
        for parameter, part in zip(parameters, parts):
            parameter.grad = part.view_as(parameter)
        rest = rest.clone()  # the next step's are written over these
        self._carried = rest[figures.numel() :]
        return rest[: figures.numel()].view_as(figures)

    def carried(self) -> list[bool]:
        """Whether anybody wanted each of ``flags`` at the last ``sum_gradients``; a single process is asked now."""
        return list(self.flags()) if self.world == 1 else [value > 0 for value in self._carried.tolist()]

    def agree(self, flag: bool) -> bool:
        """Whether anybody's is True. Nobody returns before all have called it."""
        return flag if self.world == 1 else bool(self.all_reduce_(torch.tensor([int(flag)], device=self.device)))

    def broadcast_(self, flat: Tensor) -> Tensor:
        """Rank 0's values, in place."""
        if self.world > 1:
            there = self._there(flat)
            self._call(torch.distributed.broadcast, there, 0)
            if there is not flat:
                flat.copy_(there)
        return flat

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Rank 0's ``data``, whatever the others give."""
        if self.world == 1:
            return data
        size = int(self.broadcast_(torch.tensor([len(data)], device=self.device)))
        flat = _tensor(data if self.leads else bytes(size)).to(self.device)
        return self.broadcast_(flat).cpu().numpy().tobytes()

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Everybody's ``data``, in the order of ranks."""
        if self.world == 1:
            return [data]
        sizes = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(data)
        sizes = self.all_reduce_(sizes).tolist()
        own = self._there(_tensor(data.ljust(max(sizes), b"\0")).to(self.device))
        parts = [torch.empty_like(own) for _ in sizes]
        self._call(torch.distributed.all_gather, parts, own)
        return [part.cpu().numpy().tobytes()[:size] for part, size in zip(parts, sizes)]

    def _there(self, flat: Tensor) -> Tensor:
        return flat.cpu() if self._on_cpu else flat

    def _call(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self._line.check()
        try:
            operation(*arguments, **options)
        except RuntimeError as error:  # torch.distributed's errors are among them
            raise self._line.explain(error) from error

    def _backend(self) -> str:
        """NCCL where each process has a GPU of its own, else gloo."""
        own = str(torch.cuda.get_device_properties(self.device).uuid) if self.device.type == "cuda" else ""
        self._store.tell(f"device/{self.rank}", own or "cpu")
        devices = {self._store.hear(f"device/{rank}", self._line.check) for rank in range(self.world)}
        if "cpu" in devices and len(devices) > 1:
            raise CaptionerError(
                "runtime.device: some of the processes have a GPU and others have none; set runtime.device=cpu, or use other machines"
            )
        return (
            "nccl"
            if len(devices) == self.world and "cpu" not in devices and torch.distributed.is_nccl_available()
            else "gloo"
        )


@dataclass(frozen=True)
class Whole:
    """A step of the optimiser, of all processes together.

    Attributes:
        tokens: to predict.
        captions: that have one.
        images: pictures.
        group: the processes.
        sampled: share of the words that go in that the decoder draws itself (scheduled sampling).
    """

    tokens: int
    captions: int
    images: int
    group: Group
    sampled: float = 0.0

    @classmethod
    def of(cls, batches: Sequence[Tensor]) -> Whole:
        """A single process's, from the tokens (I, K, T + 1) of its batches."""
        lengths = [(tokens != PAD).sum(-1) - 1 for tokens in batches]  # targets of each caption; -1 where there is none
        tokens = sum(int(length.clamp(min=0).sum()) for length in lengths)
        return cls(tokens, sum(int((length > 0).sum()) for length in lengths), sum(map(len, batches)), Group())


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))


def process_seed(seed: int, rank: int, epoch: int, step: int) -> int:
    """What a process's generator is seeded with at the start, and where it goes on with a state that has none for
    it."""
    return int(np.random.SeedSequence([seed, rank, epoch, step]).generate_state(1, np.uint64)[0])


@contextmanager
def leading(
    rank: Rank, device: torch.device, store: Store | None, task: dict[str, Any], stop: StopSignal
) -> Iterator[Group]:
    """Rank 0's group, once all are there.

    Args:
        store: torchrun's; None: the other processes are started here and run ``captioner.training.train.join`` with
            ``task``.

    Raises:
        CaptionerError: another process does not come, or ends before this one.
        Interrupted: a signal came before all were there.
    """
    if rank.world == 1:
        yield Group(rank, device)
        return
    with ExitStack() as stack:
        others = None
        if store is None:
            store = Store.local()
            others = stack.enter_context(
                LocalProcesses("captioner.training.train", "training", rank.world, {**task, "port": store.port})
            )

        def between() -> None:
            stop.raise_if_requested()
            if others:
                others.check()

        line = Leader(rank.world, store)
        stack.callback(line.close)
        line.wait_ready(between)
        yield stack.enter_context(Group(rank, device, store, line))


@contextmanager
def following(rank: Rank, store: Store, stop: StopSignal) -> Iterator[Callable[[torch.device], Group]]:
    """Another rank's part: what fails in this block is told to rank 0, which says it, and this process ends without a
    word.

    Gives a function to call once everything is read and checked; the group it returns is entered by the caller.
    """
    line = Follower(rank.rank, rank.world, store, stop.raise_if_requested)

    def join(device: torch.device) -> Group:
        line.ready()
        return Group(rank, device, store, line)

    try:
        yield join
    except CaptionerError as error:
        line.fail(error.message)
        raise SystemExit(error.exit_code) from error
    except BaseException as error:
        line.fail(f"{type(error).__name__}: {error}")
        raise
