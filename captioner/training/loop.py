"""The training loop: epochs of steps, validation after each, states saved so that a killed run goes on exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.errors import CaptionerError
from captioner.interrupts import StopSignal
from captioner.parameters import TrainParameters
from captioner.progress import Progress
from captioner.training.batches import Batch, BatchLoader, epoch_batches, share
from captioner.training.optimizers import Average, build_optimizer, set_rates
from captioner.training.parallel import Group, Whole
from captioner.training.phases import Phase
from captioner.training.schedule import Patience, Plateau, growing_gaps, lower_is_better, sampled_share, step_scale
from captioner.training.state import Position, restore_run, save_run, trained_weights
from captioner.training.validation import Validator, scores_wanted

STOP_FILE = "STOP"
_STEPS_ON_TRUST = 20  # a GPU would wait for the processor at every look at the loss


@dataclass(frozen=True)
class Setting:
    """What a run works on, and where.

    Attributes:
        train: the batches' source.
        validator: measures the decoder after each epoch.
        seed: order of the pictures.
        views: stored views a picture.
        folder: where states are saved, and where a file ``STOP`` ends training; None in all processes but rank 0.
        group: the processes that train together, each on its share of every batch, with the same weights.
        checkpoint_seconds: between saved states within an epoch.
        loaded: the decoder is trained already; before the first epoch it is the best so far.
    """

    train: BatchLoader
    validator: Validator
    seed: int
    views: int
    folder: Path | None
    group: Group
    checkpoint_seconds: float
    loaded: bool = False


class Trainer:
    """One training run, from its first step or from a saved state to its end.

    Args:
        decoder: freshly drawn or to be restored, the same in all processes.
        options: how it learns.
        phases: what it does, one after another.
        setting: what with.

    Attributes:
        at: where the run stands, with its history.
        best: the best weights so far, by name.
    """

    def __init__(
        self, decoder: CaptionDecoder, options: TrainParameters, phases: Sequence[Phase], setting: Setting
    ) -> None:
        self.decoder, self.options, self.phases, self.setting = decoder, options, phases, setting
        self.at = Position()
        self.best: dict[str, Tensor] = {}
        self._scored = scores_wanted(options)
        self._unread: list[Tensor] = []
        self._lap = time.monotonic()
        self._begin_phase()

    @property
    def phase(self) -> Phase:
        """The one at work."""
        return self.phases[self.at.phase]

    @property
    def _figure(self) -> str:
        """What the steps of the phase report, in words."""
        return self.phase.figure.removeprefix("train_").replace("_", " ")

    def run(self, stop: StopSignal) -> None:
        """Train to the end; the decoder then has the best weights.

        Raises:
            CaptionerError: the loss is not finite, or a state cannot be saved; the last saved state remains.
            Interrupted: a signal came; the state is saved.
        """
        if self.setting.loaded and not self.at.history:
            self._judge_loaded(stop)
        while not self.at.stopped:
            by_file = self.train_epoch(stop)
            if by_file and self.at.history:
                self.at.stopped = "by file"
            else:
                self._finish_epoch(self._validate(stop), by_file)
            self.save()
            self._raise_if(stop, self.setting.group.agree(stop.requested))
        self.decoder.load_state_dict(self.best, strict=False)  # frozen word vectors are not among them

    def _judge_loaded(self, stop: StopSignal) -> None:
        """Epoch 0: the weights that came with the decoder are the best until an epoch outdoes them."""
        self.at.history.append({"epoch": 0, **self._validate(stop)})
        self._keep_best()
        self._say(self.at.history[0])
        self._begin_phase()

    def _begin_phase(self) -> None:
        """A fresh optimiser and fresh schedules, from the best weights so far; the best epoch stays the best until it
        is outdone."""
        options, at = self.options, self.at
        at.first_epoch, at.steps = at.epoch, 0
        self.patience = Patience(options.patience)
        if self.best:
            self.decoder.load_state_dict(self.best, strict=False)
            self.patience.update(lower_is_better(at.row(at.best_epoch), self.phase.select_by))
        self.optimizer = build_optimizer(self.decoder, options)
        self.average = Average(trained_weights(self.decoder), options.ema) if options.ema else None
        self.plateaus = self._fresh_plateaus()

    def _fresh_plateaus(self) -> dict[str, Plateau]:
        metrics = self.options.plateau_on if self.phase.teacher_forced else (self.phase.select_by,)
        return {metric: Plateau(self.options.plateau_patience, self.options.plateau_factor) for metric in metrics}

    def train_epoch(self, stop: StopSignal) -> bool:
        """The steps of an epoch that are not done yet, up to the one after which a stop file is found; True where one
        is."""
        at, options, setting = self.at, self.options, self.setting
        together = (
            options.captions_per_image if self.phase.teacher_forced else 0
        )  # a reward wants all references of a picture
        batches = epoch_batches(
            setting.train.table, options.batch_size, together, setting.views, setting.seed, at.epoch
        )
        groups = [batches[first : first + options.accumulate] for first in range(0, len(batches), options.accumulate)]
        todo = groups[at.step :]
        shares = ([self._share(batch) for batch in group] for group in todo)
        self.decoder.train()
        self._lap = saved = time.monotonic()
        if self.phase.graph:
            own = (self._share(batch) for batch in batches)
            self.phase.graph.fit(setting.train.table, [batch for batch in own if batch is not None])
        everybody, on_cpu = setting.group, setting.group.device.type == "cpu"
        everybody.flags = lambda: (
            stop.requested,
            everybody.leads and time.monotonic() - saved >= setting.checkpoint_seconds,
            self._stop_file(),
        )
        if len(at.seconds) < at.epoch:
            at.seconds.append(0.0)
        label = f"{self.phase.name} epoch {at.epoch}/{at.first_epoch - 1 + self.phase.epochs}"
        with Progress(
            label, len(setting.train.table), "captions", sum(map(_captions, groups[: at.step])), everybody.leads
        ) as progress:
            for group, loaded in zip(todo, setting.train.stream_groups(shares)):
                done = at.epoch - at.first_epoch + at.step / len(groups)
                self._step(loaded, self._whole(group, done), done)
                look = on_cpu or len(self._unread) >= _STEPS_ON_TRUST
                if look:
                    self._read_losses()
                progress.advance(_captions(group), f"{self._figure} {at.loss_sum / max(at.token_sum, 1):.3f}")
                stopped, due, by_file = everybody.carried() if look or everybody.world == 1 else (False, False, False)
                if stopped or due:
                    self.save()
                    saved = time.monotonic()
                    self._raise_if(stop, stopped)
                if by_file:
                    break
        self._read_losses()
        return everybody.agree(self._stop_file())

    def _share(self, batch: Batch) -> Batch | None:
        group = self.setting.group
        return share(batch, self.setting.train.table, group.rank, group.world)

    def _whole(self, batches: Sequence[Batch], done: float) -> Whole:
        tokens = sum(int(self.setting.train.table.targets[batch.captions].sum()) for batch in batches)
        sampled = sampled_share(self.options, done) if self.phase.teacher_forced else 0.0
        return Whole(
            tokens, _captions(batches), sum(len(batch.images) for batch in batches), self.setting.group, sampled
        )

    def _step(self, batches: list[tuple[Tensor, Tensor] | None], whole: Whole, done: float) -> None:
        """One step of the optimiser on this process's share of ``whole``, after ``done`` epochs of the phase."""
        at = self.at
        scale = step_scale(self.options, at.steps, done / self.phase.epochs)
        for plateau in self.plateaus.values():
            scale *= plateau.scale
        at.rates = [rate * scale for rate in self.phase.rates]
        set_rates(self.optimizer, at.rates)
        total, count = self.phase.step(self.decoder, self.optimizer, batches, self.options, whole)
        if self.average:
            self.average.update(at.steps)
        self._unread.append(total)
        at.token_sum += count
        at.step += 1
        at.steps += 1

    def _stop_file(self) -> bool:
        return self.setting.group.leads and (self.setting.folder / STOP_FILE).exists()

    def _raise_if(self, stop: StopSignal, stopped: bool) -> None:
        """End all processes with the signal that one of them got, once the state is saved."""
        if stopped:
            stop.requested = True
            stop.raise_if_requested()

    def _read_losses(self) -> None:
        """Add up the losses of the last steps and refuse one that is not finite, before any state with its update is
        saved."""
        if not self._unread:
            return
        for row, value in enumerate(torch.stack(self._unread).tolist()):
            if not math.isfinite(value):
                raise CaptionerError(
                    f"training: the loss is {value} at epoch {self.at.epoch}, step {self.at.step - len(self._unread) + row + 1}; "
                    f"lower train.{self.phase.rate_name} or "
                    f"train.clip, or check the features (the state saved before it stays in {self.setting.folder})"
                )
            self.at.loss_sum += value
        self._unread.clear()

    def _validate(self, stop: StopSignal) -> dict[str, float]:
        """The figures of the epoch's weights, or of their average, on the validation split."""
        self.decoder.eval()
        with self.average.in_place() if self.average else nullcontext():
            figures = self._figures(stop)
        if figures is None:  # the weights are in their place again
            self.save()
            self._raise_if(stop, True)
        return figures

    def _figures(self, stop: StopSignal) -> dict[str, float] | None:
        figures = self.setting.validator.teacher_forced(self.decoder, stop)
        if figures is None:
            return None
        if not math.isfinite(figures["val_cross_entropy"]):
            raise CaptionerError(
                f"training: the validation cross entropy is {figures['val_cross_entropy']} after epoch {self.at.epoch}; lower "
                f"train.{self.phase.rate_name} or train.clip (the state saved before it stays in {self.setting.folder})"
            )
        if not self._scored:
            return figures
        scores = self.setting.validator.scores(self.decoder, stop)
        return None if scores is None else figures | scores

    def _finish_epoch(self, figures: dict[str, float], by_file: bool) -> None:
        """Record an epoch, keep its weights where they are the best, and go on to the next one, the next phase or the
        end."""
        at = self.at
        row = {
            "epoch": at.epoch,
            "learning_rate": at.rates[0],
            "projection_learning_rate": at.rates[1],
            self.phase.figure: at.loss_sum / at.token_sum,
            **figures,
            self.phase.counted: at.token_sum,
        }
        at.history.append(row)
        if self.patience.update(lower_is_better(row, self.phase.select_by)):
            at.best_epoch = at.epoch
            self._keep_best()
        for metric, plateau in self.plateaus.items():
            plateau.update(lower_is_better(row, metric))
        self._say(row)
        at.epoch, at.step, at.loss_sum, at.token_sum = at.epoch + 1, 0, 0.0, 0
        ended = self._phase_ended()
        if by_file:
            at.stopped = "by file"
        elif ended and at.phase + 1 == len(self.phases):
            at.stopped = ended
        elif ended:
            at.phase += 1
            self._begin_phase()

    def _keep_best(self) -> None:
        """The weights that were validated last are the best so far."""
        weights = self.average.tensors if self.average else trained_weights(self.decoder)
        self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def _say(self, row: dict[str, float]) -> None:
        """An epoch's figures."""
        if not self.setting.group.leads:
            return
        mark = " (best)" if self.at.best_epoch == row["epoch"] else ""
        scores = f", BLEU-4 {row['val_bleu_4']:.4f}, CIDEr-D {row['val_cider_d']:.4f}" if self._scored else ""
        learned = f"{self._figure} {row[self.phase.figure]:.4f} train, " if row["epoch"] else ""
        click.echo(
            f"epoch {row['epoch']}: {learned}cross entropy {row['val_cross_entropy']:.4f} val{mark}, "
            f"token accuracy {row['val_token_accuracy']:.4f}{scores} val",
            err=True,
        )

    def _phase_ended(self) -> str:
        """Why the phase is over; empty where it is not."""
        at, options = self.at, self.options
        if at.epoch - at.first_epoch >= self.phase.epochs:
            return "epochs"
        if self.patience.waited >= options.patience:
            return "patience"
        if options.gap_patience and self.phase.teacher_forced and growing_gaps(at.rows) >= options.gap_patience:
            return "gap"
        return ""

    def save(self) -> None:
        """Save everything that the rest of the run depends on."""
        self._read_losses()
        now = time.monotonic()
        if self.at.seconds:  # none in epoch 0
            self.at.seconds[-1] += now - self._lap
        self._lap = now
        schedules = {
            "patience": self.patience.state(),
            "plateaus": {metric: plateau.state() for metric, plateau in self.plateaus.items()},
        }
        save_run(
            self.setting.folder,
            self.decoder,
            self.optimizer,
            self.average,
            self.best,
            self.at,
            schedules,
            self.phase.state,
            self.setting.group,
        )

    def restore(self) -> bool:
        """Go back to the newest saved state; False where there is none that fits."""
        setting = self.setting
        found = restore_run(setting.folder, self.decoder, self.optimizer, self.average, setting.group, setting.seed)
        if found is None:
            return False
        self.at, self.best, schedules, kept = found
        for name, tensor in self.phase.state.items():  # of the phase that the state is of, as below
            tensor.copy_(kept[name])
        self.patience.restore(schedules["patience"])
        self.plateaus = self._fresh_plateaus()
        for metric, plateau in self.plateaus.items():
            plateau.restore(schedules["plateaus"][metric])
        return True


def _captions(group: Sequence[Batch]) -> int:
    return sum(int((batch.captions >= 0).sum()) for batch in group)
