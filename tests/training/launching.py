"""A workspace in which ``python -m stages.train`` runs as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from captioner import paths
from captioner.parameters import Parameters, parameters_content
from tests.data import ROOT

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class TrainWorkspace:
    """``params.yaml`` and the inputs of the stage, at the pipeline's paths.

    Args:
        folder: to make it in.
        data: what ``small.make_data`` gave.
        parameters: of the run.
    """

    def __init__(self, folder: Path, data: dict[str, Path], parameters: Parameters) -> None:
        self.folder = folder
        dataset = parameters.dataset
        targets = {
            "features": paths.features(dataset, parameters.encoder),
            "captions": paths.captions(dataset),
            "vocab": paths.vocab(dataset),
            "embeddings": paths.embeddings(dataset),
        }
        for name, target in targets.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data[name], folder / target)
        self.set_parameters(parameters)

    def set_parameters(self, parameters: Parameters) -> None:
        """Write params.yaml (JSON is YAML)."""
        (self.folder / "params.yaml").write_text(json.dumps(parameters_content(parameters)))

    def start(self, log: str = "log", launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Begin ``python -m stages.train``; what it says goes to the file ``log``.

        Args:
            launcher: between ``python`` and ``-m stages.train``.
        """
        environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, "-m", "stages.train"]
        with open(self.folder / log, "wb") as file:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=file, stderr=file)

    def finish(self, log: str = "again") -> str:
        """Run the stage to its end; what it said."""
        process = self.start(log)
        assert process.wait(120) == 0, self.text(log)
        return self.text(log)

    def text(self, log: str = "log") -> str:
        """What a run said."""
        return (self.folder / log).read_text()

    def checkpoints(self) -> list[Path]:
        """Of the unfinished run."""
        return sorted(self.folder.glob("models.partial/*.state"))


def until(happened: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait; whether it happened in time."""
    limit = time.monotonic() + seconds
    while not happened() and time.monotonic() < limit:
        time.sleep(0.01)
    return happened()


def workers(launcher: int) -> dict[int, int]:
    """The process id of each rank that a launcher has started."""
    found = {}
    for task in Path(f"/proc/{launcher}/task").glob("*/children"):
        for number in task.read_text().split():
            try:
                variables = Path(f"/proc/{number}/environ").read_text().split("\0")
            except OSError:  # it has ended
                continue
            found |= {int(text[5:]): int(number) for text in variables if text.startswith("RANK=")}
    return found
