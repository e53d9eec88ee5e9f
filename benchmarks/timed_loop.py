"""The training loop itself, ``captioner.training.train.fit``, of which some steps are timed."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast
from unittest import mock

import torch
from torch import Tensor

from benchmarks.coco_size import LONGEST, Sizes
from captioner.batches import Batch, BatchLoader
from captioner.cuda_graphs import GraphedModule
from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.interrupts import StopSignal
from captioner.parameters import TrainParameters
from captioner.training.data import epoch_batches
from captioner.training.distributed import Group
from captioner.training.phases import build_phases
from captioner.training.train import TrainContext, fit
from captioner.training.validation import Validator
from captioner.vocabulary.vocabulary import PAD


class Done(Exception):
    """Ends ``fit`` when enough steps are timed, or at the end of an epoch."""


class StepClock:
    """The loader and the validator of a training loop, which look at the clock when the loop asks for the next batch.

    Attributes:
        calls: all steps so far.
        first: when the first step of the stretch began.
        seconds: of the timed steps and of what the loop did between them.
        captions: of the timed steps.
    """

    def __init__(self, loader: BatchLoader, device: torch.device) -> None:
        self._loader, self._device, self.table = loader, device, loader.table
        self.calls, self.first, self.seconds, self.captions = 0, 0.0, 0.0, 0
        self._begin, self._end, self._started, self._in_step = 0, -1, 0.0, 0

    def stretch(self, warm: int, timed: int) -> None:
        """Time ``timed`` steps after the next ``warm``, at least 1; then ``Done``."""
        self._begin, self._end = self.calls + warm, self.calls + warm + timed
        self.first, self.captions = 0.0, 0

    def stream(self, groups: Iterable[list[Batch]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """See ``BatchLoader``."""
        for loaded in self._loader.stream(groups):
            self.first = self.first or time.perf_counter()
            self._in_step = sum(int((tokens[..., 1] != PAD).sum()) for _, tokens in loaded)
            yield loaded
            self._end_step()  # the loop comes back for the next batch

    def metrics(self, decoder: Decoder, stop: Callable[[], bool]) -> dict[str, float]:
        """In place of validation: the epoch is over."""
        self._end_step()  # the last one, after which the loop asks for no batch
        raise Done

    def _end_step(self) -> None:
        self.calls += 1
        if self.calls > self._begin:
            self.captions += self._in_step
        if self.calls == self._begin:
            self._started = self._now()
        if self.calls == self._end:
            self.seconds = self._now() - self._started
            raise Done

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to have done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class OurLoop:
    """The project's own loop: loader, steps, progress, losses read; everything but validation."""

    def __init__(
        self,
        sizes: Sizes,
        loader: BatchLoader,
        device: torch.device,
        batch_size: int,
        precision: str,
        folder: Path,
        graphed: bool = True,
    ) -> None:
        torch.manual_seed(0)
        self.options = TrainParameters(hidden_size=sizes.hidden, batch_size=batch_size, precision=precision)
        config = DecoderConfig(
            "lstm",
            "soft",
            sizes.vocabulary,
            50,
            sizes.channels,
            sizes.positions,
            self.options.feature_size,
            sizes.hidden,
            self.options.attention_size,
        )
        self.decoder = build_decoder(config).to(device)
        self._phases = build_phases(self.options, loader.table, LONGEST, self.decoder)
        # kept, because a new one would record its graphs anew in every run
        self._model = GraphedModule(self._phases[0].objective, graphed and device.type == "cuda")
        self.clock, self._device = StepClock(loader, device), device
        # no checkpoint is saved
        self._context = TrainContext(
            cast(BatchLoader, self.clock), cast(Validator, self.clock), Group(device=device), 0, 1, folder, float("inf")
        )
        self.steps_in_epoch = len(epoch_batches(loader.table, batch_size, self.options.captions_per_image, 1, 0, 1))
        self._recorded = False

    def run(self, warm: int, timed: int) -> float:
        """The first steps of the epoch; seconds between its beginning and the first of them."""
        if self._device.type == "cuda" and not self._recorded:  # the graphs of these steps are recorded untimed
            self._recorded = True
            self.run(warm, timed)
        self.clock.stretch(warm, timed)
        started = time.perf_counter()
        self._epoch()
        return self.clock.first - started

    def whole_epoch(self) -> float:
        """Seconds of an epoch, from its beginning to its last step's end on the device."""
        self.clock.stretch(self.steps_in_epoch + 1, 1)  # never ends it
        synchronize(self._device)
        started = time.perf_counter()
        self._epoch()
        synchronize(self._device)
        return time.perf_counter() - started

    def _epoch(self) -> None:
        """The same epoch each time, with a new optimizer."""
        with (
            mock.patch("captioner.training.phases.GraphedModule", lambda objective, enabled: self._model),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(Done),
        ):
            fit(self.decoder, self.options, self._phases, self._context, StopSignal("train"))
