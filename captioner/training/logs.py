"""What a training run reports: learning curves through DVCLive and TensorBoard, the best epoch's metrics, times."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import click

from captioner.errors import CaptionerError
from captioner.sidecar import write_atomically

CURVES, TENSORBOARD = "plots/metrics", "tensorboard"  # within the folder of results
# fractions in the program, percentages in files; a reward is CIDEr-D and BLEU-4
_PERCENT = ("train_reward", "val_token_accuracy", "val_bleu_4", "val_cider_d")


class EpochLog:
    """The metrics of every epoch: ``plots/metrics/<metric>.tsv`` by DVCLive, and an event file for TensorBoard.

    Whoever goes on from a checkpoint adds its epochs again. DVCLive's ``resume`` cannot take their place: DVC deletes
    the files before it runs a stage again, and after a kill between the log of an epoch and its checkpoint they would
    hold that epoch twice.

    Args:
        folder: the results of training; curves of another run there are deleted.
        tensorboard: also write ``tensorboard/``.

    Raises:
        CaptionerError: TensorBoard is asked for and not installed, or ``folder`` cannot be written.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self._folder, self._live, self._board = folder, None, None
        try:
            for old in (folder / CURVES, folder / TENSORBOARD):
                shutil.rmtree(old, ignore_errors=True)
            try:
                from dvclive import Live

                # DVC saves experiments and has its plots in dvc.yaml; DVCLive only writes files here
                self._live = Live(str(folder), save_dvc_exp=False, dvcyaml=None)
            except ImportError:
                click.echo("warning: no learning curves, dvclive is not installed; pip install dvclive", err=True)
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / TENSORBOARD))
        except ImportError as error:
            raise CaptionerError(
                "train.tensorboard=true: tensorboard is not installed; pip install tensorboard, or set it to false"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error

    def add(self, row: dict[str, Any]) -> None:
        """Log one epoch.

        Args:
            row: epoch, the learning rates of its last step, train_cross_entropy and val_cross_entropy in nats a token,
                val_token_accuracy, val_bleu_4 and val_cider_d where they were computed, tokens. Epochs of self-critical
                training have train_reward (the mean of the samples) and samples instead of train_cross_entropy and
                tokens. Epoch 0, the weights that a run began from, has only the metrics of validation.

        Raises:
            CaptionerError: the files cannot be written.
        """
        values = {name: _in_percent(name, value) for name, value in row.items() if name != "epoch"}
        try:
            if self._live:
                self._live.step = row["epoch"]
                for name, value in values.items():
                    self._live.log_metric(name, value if isinstance(value, int) else float(f"{value:.6g}"))
                self._live.next_step()
            if self._board:
                for name, value in values.items():
                    self._board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
                self._board.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the files."""
        try:
            if self._live:
                self._live.end()
            if self._board:
                self._board.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CaptionerError:
        return CaptionerError(
            f"{self._folder}: the learning curves cannot be written ({error.strerror}); free the disk or mend its "
            "permissions and run again"
        )


def write_metrics(
    folder: Path, rows: list[dict[str, Any]], best_epoch: int, stopped: str, trained_parameters: int
) -> None:
    """Write ``metrics.json``, without a time, in place of the last epoch's that DVCLive leaves there.

    Args:
        rows: one an epoch, as ``EpochLog.add`` gets them.
        best_epoch: the epoch whose weights are the model's.
        stopped: why training ended.
        trained_parameters: how many numbers were trained.
    """
    best = next(row for row in rows if row["epoch"] == best_epoch)
    names = (
        "train_cross_entropy",
        "train_reward",
        "val_cross_entropy",
        "val_token_accuracy",
        "val_bleu_4",
        "val_cider_d",
    )
    metrics: dict[str, Any] = {
        "best_epoch": best_epoch,
        "epochs": sum(row["epoch"] > 0 for row in rows),
        "parameters": trained_parameters,
        **{name: round(_in_percent(name, best[name]), 4 if name in _PERCENT else 6) for name in names if name in best},
        "val_perplexity": round(math.exp(min(best["val_cross_entropy"], 700)), 4),
        "stopped": stopped,
    }
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")


def write_timing(folder: Path, seconds: list[float], captions: int) -> None:
    """Write ``timing.json``: seconds of each epoch, interruptions left out, and training captions a second, validation
    included."""
    timing = {
        "seconds": round(sum(seconds), 3),
        "epoch_seconds": [round(value, 3) for value in seconds],
        "captions_per_second": round(captions * len(seconds) / max(sum(seconds), 1e-9), 1),
    }
    write_atomically(folder / "timing.json", json.dumps(timing, indent=1) + "\n")


def _in_percent(name: str, value: float) -> float:
    return value * 100 if name in _PERCENT else value
