"""A run of both phases that gets SIGKILL at random instants ends with the bytes of an uninterrupted one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.training.runs import Runs, alive
from tests.training.small import result_bytes, run, small_parameters, with_runtime

EPOCHS, CRITICAL_EPOCHS = 2, 4
PARAMETERS = with_runtime(
    small_parameters(
        epochs=EPOCHS,
        scst_epochs=CRITICAL_EPOCHS,
        learning_rate=0.02,
        scst_learning_rate=3e-3,
        patience=9,
        plateau_patience=0,
    ),
    checkpoint_seconds=0,  # a checkpoint after every step
)
TRAIN, CRITICAL = range(0, EPOCHS + 1), range(EPOCHS + 1, EPOCHS + CRITICAL_EPOCHS + 1)
"""The epochs that the newest checkpoint is of while a phase is at work; 0: there is none yet."""


@pytest.fixture(scope="module")
def whole(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run makes."""
    return result_bytes(run(tmp_path_factory.mktemp("whole"), data, PARAMETERS))


class Victim:
    """A run that is killed and goes on, again and again.

    Attributes:
        killed: epoch and step of the newest checkpoint at each death that counts.
    """

    def __init__(self, runs: Runs, data: dict[str, Path], folder: Path, seed: int) -> None:
        self._runs, self._data, self._folder, self._generator = runs, data, folder, random.Random(seed)
        self.killed: list[tuple[int, int]] = []

    def kill(self, phase: range, states: int) -> None:
        """SIGKILL it at a random instant of a phase: up to so many checkpoints after its beginning or after going on
        in it, and a moment.

        Where death came in another phase, or the run had ended, it does not count and all begins from nothing.
        """
        before = self._newest()
        while True:
            child = self._runs.start(self._folder, self._data, PARAMETERS)
            self._wait(child, (phase.start, 0))
            for _ in range(self._generator.randint(0, states)):
                epoch, step = self._newest()
                self._wait(child, (epoch, step + 1))
            time.sleep(self._generator.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            dead, newest = self._runs.wait(child) == -signal.SIGKILL, self._newest()
            if dead and newest[0] in phase and not (self._folder / "models").exists():
                assert newest >= before  # finished work is never lost
                self.killed.append(newest)
                return
            shutil.rmtree(self._folder)
            before = (0, 0)

    def _wait(self, child: int, state: tuple[int, int]) -> None:
        """Until that checkpoint or a later one is saved, or nobody is left to save it."""
        while self._newest() < state and alive(child):
            time.sleep(0.002)

    def finish(self) -> dict[str, bytes]:
        """Let it go on to its end."""
        assert self._runs.wait(self._runs.start(self._folder, self._data, PARAMETERS)) == 0
        assert not (self._folder / "models.partial").exists()
        return result_bytes(self._folder)

    def _newest(self) -> tuple[int, int]:
        names = [path.stem for path in self._folder.glob("models.partial/*.state")]
        return max(tuple(map(int, name.split("-"))) for name in names) if names else (0, 0)


def test_a_kill_in_each_phase(runs: Runs, data: dict[str, Path], whole: dict[str, bytes], tmp_path: Path) -> None:
    victim = Victim(runs, data, tmp_path / "run", seed=0)
    for phase in (TRAIN, CRITICAL):
        victim.kill(phase, 6)
    assert victim.finish() == whole


@pytest.mark.slow
def test_thirty_kills_most_of_them_in_self_critical_training(
    runs: Runs, data: dict[str, Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Each run gets some steps further and dies; a run that ends before it has died often enough begins again."""
    victim = Victim(runs, data, tmp_path / "run", seed=1)
    for phase, kills in ((TRAIN, 10), (CRITICAL, 20)):
        for _ in range(kills):
            victim.kill(phase, 2)
    assert sum(epoch in CRITICAL for epoch, _ in victim.killed) == 20 and len(set(victim.killed)) > 15
    assert sum(step > 0 for _, step in victim.killed) > 15  # in the middle of an epoch
    assert victim.finish() == whole
