"""Several processes at one piece of work: started here on one machine, or by ``torchrun`` on one or several.

Rank 0 leads: it holds the unfinished work and publishes the result. What the others are to know, it tells them through
a key-value store of torch's; waiting there can be broken off, so nobody waits for a process that is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import captioner
from captioner.errors import CaptionerError
from captioner.parameters.schema import RuntimeParameters

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Rank:
    """Which of the processes this is: ``rank`` of ``world``, and ``local_rank`` of ``local_world`` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def local_world_size(self) -> int:
        return self.local_world


class Store:
    """Words that processes leave for one another.

    Args:
        store: one of torch.distributed's.
        prefix: sets these words apart from others in the same store.
        host: where the other processes reach rank 0.

    Attributes:
        torch_store: what ``torch.distributed.init_process_group`` takes.
        host: as given.
        port: where the store of one machine listens.
    """

    def __init__(self, store: Any, prefix: str, host: str) -> None:
        import torch.distributed

        self.torch_store, self.host, self.port = (
            torch.distributed.PrefixStore(prefix, store),
            host,
            getattr(store, "port", 0),
        )

    @classmethod
    def local(cls, port: int = 0) -> Store:
        """One for the processes of this machine: a new one, or the one that listens at ``port``."""
        import torch.distributed

        return cls(
            torch.distributed.TCPStore("127.0.0.1", port, is_master=port == 0, wait_for_workers=False),
            "captioner",
            "127.0.0.1",
        )

    def tell(self, key: str, value: str) -> None:
        self._ask(self.torch_store.set, key, value)

    def hear(self, key: str, between: Callable[[], None]) -> str:
        """The value of a key once another process has told it; ``between`` is called while waiting and may raise.

        Raises:
            CaptionerError: the process that holds the store is gone.
        """
        while not self._ask(self.torch_store.check, [key]):
            between()
            time.sleep(_POLL_SECONDS)
        return self._ask(self.torch_store.get, key).decode()

    def hear_all(self, key: str, world: int, between: Callable[[], None]) -> None:
        """Return once every rank but 0 has told ``key``."""
        for number in range(1, world):
            self.hear(f"{key}/{number}", between)

    @staticmethod
    def _ask(what: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return what(*arguments)
        except RuntimeError as error:  # torch.distributed's errors are among them
            raise CaptionerError(
                f"process 0 cannot be reached any more ({error}); see its message, and run the same command again"
            ) from error


@dataclass(frozen=True)
class Torchrun:
    """What torchrun's environment says, and its store."""

    rank: Rank
    store: Store

    @classmethod
    def from_environment(cls, work: str) -> Torchrun | None:
        """None where torchrun did not start this process, or started it alone; ``work`` names what the processes do."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return None
        import torch.distributed

        names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        rank = Rank(*(int(os.environ.get(name, default)) for name, default in names.items()))
        store, _, _ = next(torch.distributed.rendezvous("env://"))
        prefix = f"captioner-{work}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        return cls(rank, Store(store, prefix, os.environ.get("MASTER_ADDR", "127.0.0.1")))


def local_world(runtime: RuntimeParameters) -> int:
    """How many processes to start on this machine where torchrun starts none."""
    if runtime.processes:
        return runtime.processes
    if runtime.device not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count() if torch.cuda.is_available() else 0)


class LocalProcesses:
    """The other processes on this machine; they end when this one does, however it ends.

    Args:
        module: its function ``join(rank, task)`` is what each of them runs.
        work: what they do, for messages.
        world: how many there are with this one, which is rank 0.
        task: JSON-serialisable.
    """

    def __init__(self, module: str, work: str, world: int, task: dict[str, Any]) -> None:
        package = str(Path(captioner.__file__).resolve().parent.parent)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._work = work
        self._processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "captioner.processes",
                    module,
                    json.dumps(asdict(Rank(rank, world, rank, world))),
                    json.dumps(task),
                ],
                stdin=subprocess.PIPE,
                env=environment,
            )
            for rank in range(1, world)
        ]

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for process in self._processes:
            if kind is not None:
                process.terminate()  # finish the block, save, end
            process.wait()
            process.stdin.close()

    def check(self) -> None:
        """Raise CaptionerError if one of them failed; it has said why itself."""
        for number, process in enumerate(self._processes, 1):
            if process.poll():
                raise CaptionerError(
                    f"{self._work} process {number} of {len(self._processes) + 1} ended with status {process.returncode}; see its message above"
                )

    def wait(self, between: Callable[[], None]) -> None:
        """Return once all of them are finished; ``between`` is called while waiting and may raise."""
        while any(process.poll() is None for process in self._processes):
            between()
            self.check()
            time.sleep(_POLL_SECONDS)
        self.check()


def _end_with_parent() -> None:
    """End this process when its standard input closes, which happens when the parent ends, also by SIGKILL."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _join(module: str, rank: str, task: str) -> None:
    """A process that LocalProcesses started."""
    _end_with_parent()
    try:
        importlib.import_module(module).join(Rank(**json.loads(rank)), json.loads(task))
    except CaptionerError as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    importlib.import_module("captioner.processes")._join(
        *sys.argv[1:]
    )  # as `captioner.processes`, not a second time as `__main__`
