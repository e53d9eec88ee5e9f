"""The training loop: epochs of steps, validation after each, checkpoints from which a killed run goes on exactly."""

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

from captioner.batches import Batch, BatchLoader
from captioner.decoder import Decoder
from captioner.errors import CaptionerError
from captioner.interrupts import StopSignal
from captioner.parameters import TrainParameters
from captioner.progress import Progress
from captioner.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from captioner.training.data import GlobalBatch, epoch_batches, shard
from captioner.training.distributed import Group
from captioner.training.logs import EpochLog
from captioner.training.optimizers import clip_gradients, set_rates
from captioner.training.phases import Learner, Phase
from captioner.training.schedules import growing_gaps, lower_is_better, step_scale
from captioner.training.validation import SCORES, Validator

STOP_FILE = "STOP"
_STEPS_UNREAD = 20  # reading a loss makes the processor wait for a GPU, so there several are read at once


@dataclass(frozen=True)
class TrainContext:
    """What a run works on, and where.

    Attributes:
        loader: reads the training batches.
        validator: measures the decoder after each epoch.
        group: the ranks that train together, each on its shard of every batch, with the same weights.
        seed: of the order of the images.
        views: stored views of an image.
        folder: for checkpoints; a file ``STOP`` there ends training after the current step.
        checkpoint_seconds: between checkpoints within an epoch.
        initialized: the decoder is trained already; before the first epoch it is the best so far.
        log: gets the metrics of every epoch, those before a checkpoint too; None on other ranks than 0.
    """

    loader: BatchLoader
    validator: Validator
    group: Group
    seed: int
    views: int
    folder: Path
    checkpoint_seconds: float
    initialized: bool = False
    log: EpochLog | None = None


def fit(
    decoder: Decoder, options: TrainParameters, phases: Sequence[Phase], context: TrainContext, stop: StopSignal
) -> TrainState:
    """Train from the first step or from the newest checkpoint to the end; the decoder then has the best weights.

    Raises:
        CaptionerError: the loss is not finite, or a checkpoint cannot be saved; the last checkpoint remains.
        Interrupted: a signal came; a checkpoint is saved.
    """
    group, table, device = context.group, context.loader.table, context.group.device
    state = TrainState()
    best: dict[str, Tensor] = {}
    unread: list[Tensor] = []  # metrics of the last steps, not read from the device yet
    learner = Learner(phases[0], decoder, options, group)
    found = load_checkpoint(context.folder, decoder, group, context.seed)
    if found:
        state, schedules, parts = found
        learner = Learner(phases[state.phase], decoder, options, group)
        learner.restore(parts, schedules)
        best = {name: tensor.to(device) for name, tensor in parts.get("best", {}).items()}
    if context.log:
        for row in state.history:
            context.log.add(row)
    clock = time.monotonic()

    def save() -> None:
        nonlocal clock
        read_metrics(unread, state, phases[state.phase], context.folder)
        now = time.monotonic()
        if state.seconds:
            state.seconds[-1] += now - clock
        clock = now
        save_checkpoint(context.folder, state, learner.schedules(), {**learner.tensors(), "best": best}, group)

    def end_if(requested: bool) -> None:
        if requested:  # by a signal to any rank
            stop.requested = True
            stop.raise_if_requested()

    def validate() -> dict[str, float]:
        decoder.eval()
        with learner.ema.in_place() if learner.ema else nullcontext():
            metrics = context.validator.metrics(decoder, lambda: stop.requested)
        if metrics is None:
            save()
            stop.requested = True  # maybe it was another rank's signal
            stop.raise_if_requested()
            raise AssertionError("an interrupted validation ends the run")
        if not math.isfinite(metrics["val_cross_entropy"]):
            raise diverged(
                "validation cross entropy", metrics["val_cross_entropy"], state, phases[state.phase], context
            )
        return metrics

    if context.initialized and not state.history:
        state.history.append({"epoch": 0, **validate()})
        best = learner.weights()
        learner.early_stopping.update(lower_is_better(state.history[0], phases[0].select_by))
        report(state, phases[0], context)

    while not state.stopped:
        phase = phases[state.phase]
        batches = epoch_batches(
            table,
            options.batch_size,
            phase.captions_per_image,
            context.views,
            context.seed,
            state.epoch,
            options.group_by_length,
        )
        steps = [batches[first : first + options.accumulate] for first in range(0, len(batches), options.accumulate)]
        remaining = steps[state.step :]
        shards = ([shard(batch, table, group.rank, group.world_size) for batch in step] for step in remaining)
        if len(state.seconds) < state.epoch:
            state.seconds.append(0.0)
        saved, stopped_by_file = time.monotonic(), False
        decoder.train()
        label = f"{phase.name} epoch {state.epoch}/{state.first_epoch - 1 + phase.epochs}"
        done = sum(map(count_captions, steps[: state.step]))
        with Progress(label, len(table), "captions", done, group.is_main) as progress:
            for step, loaded in zip(remaining, context.loader.stream(shards)):
                # learning rates: warm-up, steps and cosine, then the plateaus
                epochs_done = state.epoch - state.first_epoch + state.step / len(steps)
                scale = step_scale(options, state.phase_steps, epochs_done / phase.epochs)
                scale *= math.prod(plateau.scale for plateau in learner.plateaus.values())
                state.rates = [rate * scale for rate in phase.rates]
                set_rates(learner.optimizer, state.rates)

                # forward and backward passes; gradients add up over the batches of a step
                counts = GlobalBatch.of(step, table)
                learner.optimizer.zero_grad(set_to_none=True)
                statistics = torch.zeros(phase.objective.statistics, device=device)
                for number, (features, tokens) in enumerate(loaded, 1):
                    features = features.to(device, non_blocking=True)
                    tensors = phase.objective.prepare(features, tokens, counts, group.world_size, epochs_done)
                    last = number == len(loaded)
                    with nullcontext() if last else learner.no_sync():
                        with autocast(device, options):
                            loss, own = learner.model(*tensors)
                        loss.backward()
                    if number == 1 and not last:
                        learner.graphed.keep_gradients()
                    statistics = statistics + own.detach()  # all outputs of a CUDA graph require a gradient
                total, count = phase.objective.finish(group.sum(statistics), counts)

                # update
                if options.clip:
                    clip_gradients(learner.parameters, options.clip)
                learner.optimizer.step()
                if learner.ema:
                    learner.ema.update(state.phase_steps)
                unread.append(total)
                state.metric_count += count
                state.step += 1
                state.phase_steps += 1

                # look at the losses, and whether any rank wants to save or to stop
                if device.type == "cpu" or len(unread) >= _STEPS_UNREAD:
                    read_metrics(unread, state, phase, context.folder)
                    mean = state.metric_sum / max(state.metric_count, 1)
                    progress.advance(0, f"{metric_name(phase)} {shown(phase, mean)}")
                    due = time.monotonic() - saved >= context.checkpoint_seconds
                    requested, due, stopped_by_file = group.any(
                        stop.requested, group.is_main and due, group.is_main and stop_file(context)
                    )
                    if requested or due:
                        save()
                        saved = time.monotonic()
                        end_if(requested)
                progress.advance(count_captions(step))
                if stopped_by_file:
                    break
        read_metrics(unread, state, phase, context.folder)
        (stopped_by_file,) = group.any(group.is_main and stop_file(context))

        if stopped_by_file and state.history:
            state.stopped = "by file"  # the unfinished epoch does not count
        else:
            metrics = validate()
            row = {
                "epoch": state.epoch,
                "learning_rate": state.rates[0],
                "projection_learning_rate": state.rates[1],
                phase.objective.metric: state.metric_sum / state.metric_count,
                **metrics,
                phase.objective.counted: state.metric_count,
            }
            state.history.append(row)
            if learner.early_stopping.update(lower_is_better(row, phase.select_by)):
                state.best_epoch, best = state.epoch, learner.weights()
            for metric, plateau in learner.plateaus.items():
                plateau.update(lower_is_better(row, metric))
            report(state, phase, context)
            ended = phase_ended(state, phase, learner, options)
            state.epoch, state.step, state.metric_sum, state.metric_count = state.epoch + 1, 0, 0.0, 0
            if stopped_by_file:
                state.stopped = "by file"
            elif ended and state.phase + 1 == len(phases):
                state.stopped = ended
            elif ended:  # the next phase begins from the best weights so far
                state.phase, state.first_epoch, state.phase_steps = state.phase + 1, state.epoch, 0
                decoder.load_state_dict(best, strict=False)
                learner = Learner(phases[state.phase], decoder, options, group)
                best_row = state.row(state.best_epoch)
                learner.early_stopping.update(lower_is_better(best_row, phases[state.phase].select_by))
        save()
        end_if(group.any(stop.requested)[0])
    decoder.load_state_dict(best, strict=False)  # frozen word vectors are not among them
    return state


def autocast(device: torch.device, options: TrainParameters) -> torch.autocast:
    """The context in which large products have ``train.precision``."""
    # CUDA graphs cannot record a pass that reads weights cast before it
    enabled = options.precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=device.type == "cpu")


def read_metrics(unread: list[Tensor], state: TrainState, phase: Phase, folder: Path) -> None:
    """Add up the metrics of the last steps; one that is not finite is refused before it gets into a checkpoint."""
    if not unread:
        return
    for row, value in enumerate(torch.stack(unread).tolist()):
        if not math.isfinite(value):
            step = state.step - len(unread) + row + 1
            raise CaptionerError(
                f"training: the loss is {value} at epoch {state.epoch}, step {step}; lower train.{phase.rate_name} or "
                f"train.clip, or check the features (the checkpoint before it stays in {folder})"
            )
        state.metric_sum += value
    unread.clear()


def diverged(what: str, value: float, state: TrainState, phase: Phase, context: TrainContext) -> CaptionerError:
    """The error for a metric of an epoch that is not finite."""
    return CaptionerError(
        f"training: the {what} is {value} after epoch {state.epoch}; lower train.{phase.rate_name} or train.clip (the "
        f"checkpoint before it stays in {context.folder})"
    )


def phase_ended(state: TrainState, phase: Phase, learner: Learner, options: TrainParameters) -> str:
    """Why the phase is over after this epoch; empty where it is not."""
    if state.epoch - state.first_epoch + 1 >= phase.epochs:
        return "epochs"
    if learner.early_stopping.waited >= options.patience:
        return "patience"
    if options.gap_patience and phase.teacher_forced and growing_gaps(state.phase_rows) >= options.gap_patience:
        return "gap"
    return ""


def report(state: TrainState, phase: Phase, context: TrainContext) -> None:
    """Log and print the metrics of the last epoch."""
    row = state.history[-1]
    if context.log:
        context.log.add(row)
    if not context.group.is_main:
        return
    best = " (best)" if state.best_epoch == row["epoch"] else ""
    scores = ", ".join(f"{name.removeprefix('val_')} {100 * row[name]:.1f}" for name in SCORES if name in row)
    trained = f"{metric_name(phase)} {shown(phase, row[phase.objective.metric])} train, " if row["epoch"] else ""
    click.echo(
        f"epoch {row['epoch']}: {trained}cross entropy {row['val_cross_entropy']:.4f} val{best}, token accuracy "
        f"{100 * row['val_token_accuracy']:.1f} %{', ' + scores if scores else ''} val",
        err=True,
    )


def metric_name(phase: Phase) -> str:
    """What the steps of a phase report, in words."""
    return phase.objective.metric.removeprefix("train_").replace("_", " ")


def shown(phase: Phase, value: float) -> str:
    """The metric of the steps of a phase: nats, or percentage points of the reward."""
    return f"{100 * value:.1f}" if phase.objective.metric == "train_reward" else f"{value:.4f}"


def stop_file(context: TrainContext) -> bool:
    """Whether the user asked training to end."""
    return (context.folder / STOP_FILE).exists()


def count_captions(step: Sequence[Batch]) -> int:
    """Captions of the batches of a step."""
    return sum(int((batch.captions >= 0).sum()) for batch in step)
