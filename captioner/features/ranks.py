"""The processes that share one extraction: started here on one machine, or by ``torchrun`` on one or several.

They share nothing but the file, each writes its own blocks; rank 0 makes the file and publishes it. Under ``torchrun`` its key-value
store says when the file is there and when everybody is finished; no collective operation is needed, so none can hang or time out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

import captioner
from captioner.errors import CaptionerError

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Rank:
    """Which of the processes this is: ``rank`` of ``world``, and ``local_rank`` of ``local_world`` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


class Torchrun:
    """What torchrun's environment says, and its store; absent (``from_environment`` gives None) where it did not start us."""

    def __init__(self, rank: Rank) -> None:
        import torch.distributed

        self.rank = rank
        self._store, _, _ = next(torch.distributed.rendezvous("env://"))
        self._prefix = f"captioner-extract/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    @classmethod
    def from_environment(cls) -> "Torchrun | None":
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return None
        value = {name: int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))}
        return cls(Rank(value["RANK"], value["WORLD_SIZE"], value["LOCAL_RANK"], value["LOCAL_WORLD_SIZE"]))

    def tell(self, key: str, value: str) -> None:
        self._store.set(f"{self._prefix}/{key}", value)

    def hear(self, key: str, between: Callable[[], None]) -> str:
        """The value of a key once another rank has told it; ``between`` is called while waiting and may raise."""
        name = f"{self._prefix}/{key}"
        while not self._store.check([name]):
            between()
            time.sleep(_POLL_SECONDS)
        return self._store.get(name).decode()

    def hear_all(self, key: str, between: Callable[[], None]) -> None:
        """Return once every other rank has told ``key``."""
        for number in range(1, self.rank.world):
            self.hear(f"{key}/{number}", between)


class LocalProcesses:
    """The other processes of an extraction on this machine; they end when this one does, however it ends."""

    def __init__(self, world: int, task: dict[str, Any]) -> None:
        package = str(Path(captioner.__file__).resolve().parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "captioner.features.extract", json.dumps({**task, "rank": asdict(Rank(rank, world, rank, world))})],
                stdin=subprocess.PIPE,
                env=environment,
            )
            for rank in range(1, world)
        ]

    def __enter__(self) -> "LocalProcesses":
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
                raise CaptionerError(f"extraction process {number} of {len(self._processes) + 1} ended with status {process.returncode}; see its message above")

    def wait(self, between: Callable[[], None]) -> None:
        """Return once all of them are finished; ``between`` is called while waiting and may raise."""
        while any(process.poll() is None for process in self._processes):
            between()
            self.check()
            time.sleep(_POLL_SECONDS)
        self.check()


def end_with_parent() -> None:
    """End this process when its standard input closes, which happens when the parent ends, also by SIGKILL."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
