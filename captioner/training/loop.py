"""The training loop: teacher forcing with Adam, validation after every epoch, states saved so that a killed run goes on exactly."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Iterator

import click
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.errors import CaptionerError
from captioner.interrupts import StopSignal
from captioner.parameters import TrainParameters
from captioner.progress import Progress
from captioner.training.batches import BatchLoader, epoch_batches, ordered_batches
from captioner.training.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state
from captioner.training.loss import correct_tokens, summed_cross_entropy
from captioner.training.schedule import Patience, Plateau
from captioner.training.step import build_optimizer, training_step

_VALIDATION_CAPTIONS = 320  # in a batch; decides the last bits of the validation figures, so it is no parameter of the machine
_STEPS_ON_TRUST = 20  # a GPU would wait for the processor at every look at the loss


class Trainer:
    """One training run, from its first step or from a saved state to its end.

    Args:
        decoder: freshly drawn or to be restored, on ``device``.
        parameters: how it learns.
        seed: order of the pictures.
        views: stored views a picture.
        train, val: the batches' sources.
        folder: where states are saved.
        checkpoint_seconds: between saved states within an epoch.

    Attributes:
        history: one row an epoch.
        best_epoch: the epoch with the lowest validation cross entropy, from 1; 0 before the first.
        seconds: time of each epoch.
    """

    def __init__(
        self, decoder: CaptionDecoder, parameters: TrainParameters, seed: int, views: int, train: BatchLoader, val: BatchLoader,
        folder: Path, device: torch.device, checkpoint_seconds: float,
    ) -> None:  # fmt: skip
        self.decoder, self.parameters, self.seed, self.views = decoder, parameters, seed, views
        self.train, self.val, self.folder, self.device = train, val, folder, device
        self.checkpoint_seconds = checkpoint_seconds
        self.optimizer = build_optimizer(decoder, parameters)
        self.plateau = Plateau(parameters.plateau_patience, parameters.plateau_factor)
        self.patience = Patience(parameters.patience)
        self.epoch, self.step, self.loss_sum, self.token_sum = 1, 0, 0.0, 0
        self.history: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.best_epoch = 0
        self.best: dict[str, Tensor] = {}
        self._unread: list[Tensor] = []
        self._lap = time.monotonic()

    @property
    def finished(self) -> bool:
        """All epochs are done, or validation has not improved for long enough."""
        return self.epoch > self.parameters.epochs or self.patience.waited >= self.parameters.patience

    def run(self, stop: StopSignal) -> None:
        """Train to the end.

        Raises:
            CaptionerError: the loss is not finite, or a state cannot be saved; the last saved state remains.
            Interrupted: a signal came; the state is saved.
        """
        self._set_rates()
        while not self.finished:
            self._train_epoch(stop)
            self._finish_epoch(*self._validate(stop))
            self.save()
            stop.raise_if_requested()
        self.decoder.load_state_dict(self.best, strict=False)  # frozen word vectors are not among them

    def _train_epoch(self, stop: StopSignal) -> None:
        options = self.parameters
        batches = epoch_batches(self.train.table, options.batch_size, options.captions_per_image, self.views, self.seed, self.epoch)
        done = sum(int((batch.captions >= 0).sum()) for batch in batches[: self.step])
        self.decoder.train()
        self._lap = saved = time.monotonic()
        if len(self.seconds) < self.epoch:
            self.seconds.append(0.0)
        with Progress(f"train epoch {self.epoch}/{options.epochs}", len(self.train.table), "captions", done) as progress:
            for batch, (features, tokens) in zip(batches[self.step :], self.train.stream(batches[self.step :])):
                total, count = training_step(self.decoder, self.optimizer, features.to(self.device, non_blocking=True), tokens, options)
                self._unread.append(total)
                self.token_sum += count
                self.step += 1
                if self.device.type == "cpu" or len(self._unread) >= _STEPS_ON_TRUST:
                    self._read_losses()
                progress.advance(int((batch.captions >= 0).sum()), f"cross entropy {self.loss_sum / max(self.token_sum, 1):.3f}")
                if stop.requested or time.monotonic() - saved >= self.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                    stop.raise_if_requested()
        self._read_losses()

    def _read_losses(self) -> None:
        """Add up the losses of the last steps and refuse one that is not finite, before any state with its update is saved."""
        if not self._unread:
            return
        for row, value in enumerate(torch.stack(self._unread).tolist()):
            if not math.isfinite(value):
                raise CaptionerError(
                    f"training: the loss is {value} at epoch {self.epoch}, step {self.step - len(self._unread) + row + 1}; "
                    "lower train.learning_rate or "
                    f"train.clip, or check the features (the state saved before it stays in {self.folder})"
                )
            self.loss_sum += value
        self._unread.clear()

    @torch.no_grad()
    def _validate(self, stop: StopSignal) -> tuple[float, float]:
        """Cross entropy (nats a token) and token accuracy on the validation split."""
        self.decoder.eval()
        total, correct, count = 0.0, 0, 0
        for features, tokens in self.val.stream(ordered_batches(self.val.table, _VALIDATION_CAPTIONS)):
            if stop.requested:
                self.save()
                stop.raise_if_requested()
            outputs = self.decoder(features.to(self.device, non_blocking=True), tokens)
            total += summed_cross_entropy(outputs).item()
            correct += int(correct_tokens(outputs))
            count += outputs.targets.numel()
        if not math.isfinite(total):
            raise CaptionerError(
                f"training: the validation cross entropy is {total} after epoch {self.epoch}; lower train.learning_rate or train.clip "
                f"(the state saved before it stays in {self.folder})"
            )
        return total / count, correct / count

    def _finish_epoch(self, cross_entropy: float, accuracy: float) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        row = {
            "epoch": self.epoch, "learning_rate": rates[0], "projection_learning_rate": rates[1],
            "train_cross_entropy": self.loss_sum / self.token_sum, "val_cross_entropy": cross_entropy, "val_token_accuracy": accuracy,
            "tokens": self.token_sum,
        }  # fmt: skip
        self.history.append(row)
        if self.patience.update(cross_entropy):
            self.best_epoch = self.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self._trained()}
        self.plateau.update(cross_entropy)
        self._set_rates()
        mark = " (best)" if self.best_epoch == self.epoch else ""
        click.echo(
            f"epoch {self.epoch}: cross entropy {row['train_cross_entropy']:.4f} train, {cross_entropy:.4f} val{mark}, "
            f"token accuracy {accuracy:.4f} val",
            err=True,
        )
        self.epoch, self.step, self.loss_sum, self.token_sum = self.epoch + 1, 0, 0.0, 0

    def _set_rates(self) -> None:
        """Learning rates from the parameters and the plateau's scale."""
        for group, rate in zip(self.optimizer.param_groups, (self.parameters.learning_rate, self.parameters.projection_learning_rate)):
            group["lr"] = rate * self.plateau.scale

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors that training changes."""
        return ((name, parameter) for name, parameter in self.decoder.named_parameters() if parameter.requires_grad)

    def save(self) -> None:
        """Save everything that the rest of the run depends on."""
        self._read_losses()
        now = time.monotonic()
        self.seconds[-1] += now - self._lap
        self._lap = now
        tensors = {f"weights.{name}": tensor for name, tensor in self._trained()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(self.optimizer).items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "epoch": self.epoch, "step": self.step, "loss_sum": self.loss_sum, "token_sum": self.token_sum, "history": self.history,
            "seconds": self.seconds, "best_epoch": self.best_epoch, "plateau": self.plateau.state(), "patience": self.patience.state(),
        }  # fmt: skip
        save_state(self.folder, f"{self.epoch:06d}-{self.step:09d}", tensors, state)

    def restore(self) -> bool:
        """Go back to the newest saved state; False where there is none that fits this decoder (its code may have changed since)."""
        found = load_state(self.folder)
        if found is None:
            return False
        tensors, state = found
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}, "random": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        if {name: tensor.shape for name, tensor in parts["weights"].items()} != {name: tensor.shape for name, tensor in self._trained()}:
            click.echo("train: the saved state is of a decoder with other layers; starting afresh", err=True)
            return False
        self.decoder.load_state_dict(parts["weights"], strict=False)  # frozen word vectors are not among them
        self.best = {name: tensor.to(self.device) for name, tensor in parts["best"].items()}
        restore_optimizer(self.optimizer, parts["optimizer"])
        torch.set_rng_state(parts["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in parts["random"]:
            torch.cuda.set_rng_state(parts["random"]["cuda"], self.device)
        self.epoch, self.step, self.loss_sum, self.token_sum = state["epoch"], state["step"], state["loss_sum"], state["token_sum"]
        self.history, self.seconds, self.best_epoch = state["history"], state["seconds"], state["best_epoch"]
        self.plateau.restore(state["plateau"])
        self.patience.restore(state["patience"])
        return True
