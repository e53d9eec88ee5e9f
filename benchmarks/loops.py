"""Training as the benchmarks time it: a step as ``fit`` does it, ``fit`` itself for some steps, a textbook loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.coco import LONGEST, VECTOR_SIZE, Sizes, make_decoder
from benchmarks.textbook_decoder import TextbookDecoder, textbook_step
from captioner.batches import Batch, BatchLoader, CaptionTable
from captioner.errors import Interrupted
from captioner.features.store import FeatureReader
from captioner.interrupts import StopSignal
from captioner.launch import Rank
from captioner.parameters import TrainParameters
from captioner.training.data import GlobalBatch, epoch_batches
from captioner.training.distributed import Group
from captioner.training.optimizers import clip_gradients
from captioner.training.phases import Learner, build_phases
from captioner.training.train import TrainContext, autocast, fit

PRECISIONS = ("fp32", "bf16")
_FOREVER = 10**9  # epochs


def training_step(
    learner: Learner, options: TrainParameters, features: Tensor, tokens: Tensor, counts: GlobalBatch
) -> Tensor:
    """What ``fit`` does with one batch on one rank; the learning rates are set already.

    Returns:
        The summed metric of the objective, which is still on the device.
    """
    objective = learner.objective
    learner.optimizer.zero_grad(set_to_none=True)
    tensors = objective.prepare(features, tokens, counts, 1, 0.0)
    with autocast(features.device, options):
        loss, statistics = learner.model(*tensors)
    loss.backward()
    total, _ = objective.finish(statistics, counts)
    if options.clip:
        clip_gradients(learner.parameters, options.clip)
    learner.optimizer.step()
    return total


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to have done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TimedLoader(BatchLoader):
    """The project's loader, which also notes the time, and can end an epoch early.

    A step lasts from one request of the loop for a batch to the next, so everything that the loop does is in it.

    Args:
        table, rows, reader: see ``BatchLoader``.
        device: of the training.

    Attributes:
        waits: seconds that the loop waited for each batch of the last epoch.
        captions: of the timed steps.
        seconds: of the timed steps.
        first: when the loop got its first batch.
    """

    def __init__(self, table: CaptionTable, rows: np.ndarray, reader: FeatureReader, device: torch.device) -> None:
        super().__init__(table, rows, reader)
        self._device = device
        self._warm, self._timed, self._started = 0, 0, 0.0
        self.waits: list[float] = []
        self.captions, self.seconds, self.first = 0, 0.0, 0.0

    def limit(self, warm: int, timed: int) -> None:
        """The next epochs have ``warm`` steps and then ``timed`` that are timed, fewer where there are no more."""
        self._warm, self._timed = warm, timed

    def stream(self, groups: Iterable[list[Batch]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """See ``BatchLoader``."""
        self.waits, self.captions, self.first = [], 0, 0.0
        steps = list(islice(groups, self._warm + self._timed))
        loaded = super().stream(steps)
        for number, step in enumerate(steps):
            if number == self._warm:
                synchronize(self._device)
                self._started = time.perf_counter()
            requested = time.perf_counter()
            batches = next(loaded)
            now = time.perf_counter()
            self.waits.append(now - requested)
            self.first = self.first or now
            if number >= self._warm:
                self.captions += sum(int((batch.captions >= 0).sum()) for batch in step)
            yield batches

    def stop_clock(self) -> None:
        """Called after the last step of an epoch."""
        synchronize(self._device)
        self.seconds = time.perf_counter() - self._started


class FitLoop:
    """``fit`` without validation and checkpoints, in a thread of its own that works only within ``run``.

    So the epochs of several loops can be timed in turn, and each keeps its optimizer and its CUDA graphs. Use it as a
    context manager. It is also the validator of its ``fit``: there it waits for the next ``run``.
    """

    def __init__(
        self, sizes: Sizes, loader: TimedLoader, device: torch.device, batch_size: int, precision: str
    ) -> None:
        self.options = TrainParameters(
            hidden_size=sizes.hidden, batch_size=batch_size, precision=precision, epochs=_FOREVER, patience=_FOREVER
        )
        self.loader, self._device = loader, device
        self.decoder = make_decoder(sizes, self.options, device)
        self.steps_in_epoch = len(epoch_batches(loader.table, batch_size, self.options.captions_per_image, 1, 0, 1))
        self._thread = threading.Thread(target=self._fit, name="fit", daemon=True)
        self._begin, self._end = threading.Semaphore(0), threading.Semaphore(0)
        self._closed, self._error = False, None

    def run(self, warm: int, timed: int) -> float:
        """A new epoch of ``warm`` steps and ``timed`` more; seconds from its beginning to its first batch."""
        self.loader.limit(warm, timed)
        begun = time.perf_counter()
        self._begin.release()
        self._end.acquire()
        if self._error:
            raise self._error
        return self.loader.first - begun

    def whole_epoch(self) -> float:
        """Seconds of a whole epoch, to the end of its last step on the device."""
        synchronize(self._device)
        begun = time.perf_counter()
        self.run(0, self.steps_in_epoch + 1)
        return time.perf_counter() - begun

    @property
    def rate(self) -> float:
        """Captions a second of the timed steps."""
        return self.loader.captions / self.loader.seconds

    def metrics(self, *_: object) -> dict[str, float]:
        """See ``Validator``: nothing is measured."""
        self.loader.stop_clock()
        self._end.release()
        self._wait()
        return {"val_cross_entropy": 0.0, "val_token_accuracy": 0.0}

    def __enter__(self) -> FitLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._begin.release()
        self._thread.join()

    def _wait(self) -> None:
        self._begin.acquire()
        if self._closed:
            raise Interrupted("benchmark: ended")

    def _fit(self) -> None:
        group = Group(Rank(rank=1), self._device)  # a rank other than 0 prints nothing and writes no checkpoint
        context = TrainContext(self.loader, self, group, 0, 1, Path(), float("inf"))
        try:
            self._wait()
            phases = build_phases(self.options, self.loader.table, LONGEST, self.decoder)
            fit(self.decoder, self.options, phases, context, StopSignal("benchmark"))
        except Interrupted:
            pass
        except BaseException as error:  # raised again by ``run``
            self._error = error
        finally:
            self._end.release()


class TextbookLoop:
    """The textbook decoder on batches of the same captions, with features from the same reader."""

    def __init__(self, sizes: Sizes, loader: BatchLoader, device: torch.device, batch_size: int) -> None:
        torch.manual_seed(0)
        attention = TrainParameters().attention_size
        decoder = TextbookDecoder(sizes.vocabulary, VECTOR_SIZE, sizes.channels, sizes.hidden, attention)
        self._decoder = decoder.to(device).train()
        self._optimizer = torch.optim.Adam(
            [parameter for parameter in self._decoder.parameters() if parameter.requires_grad]
        )
        self._loader, self._device, self._batch_size, self._epoch = loader, device, batch_size, 1

    def rate(self, steps: int) -> float:
        """Captions a second, after one step to warm up."""
        self._epoch += 1
        batches = epoch_batches(self._loader.table, self._batch_size, 0, 1, 0, self._epoch)[: steps + 1]
        captions, started = 0, 0.0
        for batch in batches:
            features, tokens = self._loader.load(batch)
            textbook_step(self._decoder, self._optimizer, features, tokens.to(self._device)).item()
            if started:
                captions += int((batch.captions >= 0).sum())
            started = started or time.perf_counter()
        return captions / (time.perf_counter() - started)
