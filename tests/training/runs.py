"""Training runs in processes of their own, forked from one that has everything imported."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from captioner.parameters import Parameters
from tests.data import ROOT

_SERVER = """
import importlib, os, pickle, sys
sys.path.insert(0, {root!r})
import torch
import torch.distributed
import tests.training.small, captioner.search, captioner.metrics
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports a good deal
print("ready", flush=True)
for line in iter(sys.stdin.readline, ""):
    task = pickle.loads(bytes.fromhex(line))
    if isinstance(task, int):
        print("exit", os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        module, name, arguments, environment, log = task
        os.environ.update(environment)
        if log:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        try:
            getattr(importlib.import_module(module), name)(*arguments)
        except SystemExit as error:
            os._exit(error.code)
        except BaseException as error:
            print(f"{{type(error).__name__}}: {{error}}", file=sys.stderr, flush=True)
            os._exit(getattr(error, "exit_code", 99))
        os._exit(0)
    print("pid", child, flush=True)
"""


class Runs:
    """Starts functions in processes and waits for them."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER.format(root=str(ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            stderr=subprocess.DEVNULL,
        )
        assert self._line() == "ready"

    def start(
        self,
        folder: Path,
        data: dict[str, Path],
        parameters: Parameters,
        environment: dict[str, str] | None = None,
        log: Path | None = None,
    ) -> int:
        """Begin a run of ``small.run``; its process id. ``log`` takes what it says on stderr."""
        return self.call("tests.training.small", "run", (folder, data, parameters), environment, log)

    def call(
        self,
        module: str,
        name: str,
        arguments: tuple[Any, ...],
        environment: dict[str, str] | None = None,
        log: Path | None = None,
    ) -> int:
        """Begin any function; its process id, which stays its own until ``wait``."""
        self._send((module, name, arguments, environment or {}, log and str(log)))
        return self._number("pid")

    def wait(self, process: int) -> int:
        """The exit status of a process, minus the signal that ended it."""
        self._send(process)
        return self._number("exit")

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _send(self, task: Any) -> None:
        self._server.stdin.write(pickle.dumps(task).hex() + "\n")

    def _number(self, what: str) -> int:
        """The number on the next line, which must be of this kind: a wrong process id would be killed."""
        kind, number = self._line().split()
        assert kind == what
        return int(number)

    def _line(self) -> str:
        return self._server.stdout.readline().strip()


def torchrun_environments(world: int) -> list[dict[str, str]]:
    """What torchrun would put into the environment of each of its processes on one machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def start_ranks(runs: Runs, folder: Path, world_size: int, task: str, *arguments: Any, log: str = "log") -> list[int]:
    """Call a function of parallel_tasks in every rank; the exit code of each."""
    folder.mkdir(exist_ok=True)
    processes = [
        runs.call("tests.training.parallel_tasks", task, (folder, *arguments), environment, folder / log)
        for environment in torchrun_environments(world_size)
    ]
    return [runs.wait(process) for process in processes]


def run_ranks(
    runs: Runs, folder: Path, world_size: int, task: str, *arguments: Any, log: str = "log"
) -> list[list[dict[str, Any]]]:
    """Call a function of parallel_tasks in every rank; what each left in its file."""
    codes = start_ranks(runs, folder, world_size, task, *arguments, log=log)
    assert codes == [0] * world_size, (folder / log).read_text()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world_size)]


def children(process: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(number) for number in task.read_text().split()]
    return found


def alive(process: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
