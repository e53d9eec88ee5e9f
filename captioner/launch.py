"""Several processes on one job: which rank this process has, and how to start one process per GPU on this machine.

torch's launcher does the work, as under ``torchrun``: it starts the workers, sets their environment, watches them and
ends all of them when one fails.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import time
import uuid
from dataclasses import dataclass

from captioner.errors import CaptionerError, Interrupted
from captioner.parameters import RuntimeParameters

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MONITOR_SECONDS = 0.2
_SHUTDOWN_SECONDS = 300  # to finish a step and save after a signal; torch's default of 30 is short for a slow CPU
_RELEASE_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def end_process_group() -> None:
    """Destroy torch.distributed's default group.

    gloo's thread frees the last collective under the interpreter's lock. The group's destructor holds that lock and
    waits for the thread, so a rank that comes here at once can hang forever (seen with torch 2.13). Waiting first gives
    the thread the lock.
    """
    import torch.distributed

    time.sleep(_RELEASE_SECONDS)
    torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Rank:
    """This process's place among all processes (``rank``) and among those of its machine (``local_rank``)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> Rank:
        """What torchrun's environment variables say; without them, a single process.

        Raises:
            CaptionerError: some of the variables are missing, or one is not a number in its range.
        """
        if not launched_by_torchrun():
            return cls()
        numbers = {}
        for name in _VARIABLES:
            text = os.environ.get(name)
            if text is None:
                raise CaptionerError(f"{name} is not set, but other variables of torchrun are: set all of {_VARIABLES}")
            if not text.isdecimal():
                raise CaptionerError(f"{name}={text}: not a number; torchrun sets it to one")
            numbers[name.lower()] = int(text)
        rank = cls(**numbers)
        if rank.rank >= rank.world_size:
            raise CaptionerError(f"RANK={rank.rank}: it must be below WORLD_SIZE={rank.world_size}")
        if rank.local_rank >= rank.local_world_size:
            raise CaptionerError(
                f"LOCAL_RANK={rank.local_rank}: it must be below LOCAL_WORLD_SIZE={rank.local_world_size}"
            )
        return rank

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and messages."""
        return self.rank == 0


def launched_by_torchrun() -> bool:
    """Whether torchrun, or ``launch``, started this process."""
    return any(name in os.environ for name in _VARIABLES)


def process_count(runtime: RuntimeParameters) -> int:
    """How many processes to start on this machine: ``runtime.processes``, or one per GPU."""
    if runtime.processes:
        return runtime.processes
    if runtime.device not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def launch(module: str, processes: int) -> None:
    """Run ``python -m module`` with this process's arguments in ``processes`` processes on this machine.

    SIGINT and SIGTERM are passed on; the workers finish their step, save and exit. The workers end with this process,
    however it ends.

    Raises:
        CaptionerError: a worker failed, and the others were ended; its message is on stderr.
        Interrupted: a signal came, and the workers have ended.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SHUTDOWN_SECONDS))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",  # otherwise the machine's host name, which may not resolve
        max_restarts=0,
        monitor_interval=_MONITOR_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # stdout and stderr of the workers pass through
    )
    worker = ["-m", "captioner.launch", str(os.getpid()), module, *sys.argv[1:]]
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in handled}  # torch replaces them and leaves its own
    try:
        elastic_launch(config, sys.executable)(*worker)
    except ChildFailedError as error:
        # a rank that lost another one may fail at the same time; the launcher ends the others by SIGTERM
        order = {-signal.SIGTERM: 2}
        rank, failure = min(
            error.failures.items(),
            key=lambda item: (order.get(item[1].exitcode, int(item[1].exitcode >= 0)), item[1].timestamp),
        )
        if failure.exitcode < 0:
            how = f"was ended by {signal.Signals(-failure.exitcode).name}"
        else:
            how = f"ended with exit code {failure.exitcode}; its message is above"
        raise CaptionerError(f"{module}: rank {rank} of {processes} {how}") from None
    except SignalException as error:
        raise Interrupted(f"{module}: interrupted by {signal.Signals(error.sigval).name}") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_with_launcher(launcher: int) -> None:
    """Have the kernel end this process when the launcher ends, also by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended before the call
        os._exit(1)


if __name__ == "__main__":  # a worker: python -m captioner.launch PID MODULE ARGUMENTS
    _end_with_launcher(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
