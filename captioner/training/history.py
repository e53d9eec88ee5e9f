"""What a training run reports: one row an epoch, and the best epoch's numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from captioner.sidecar import write_atomically


def write_history(
    folder: Path, rows: list[dict[str, Any]], best_epoch: int, stopped: str, trained_parameters: int
) -> None:
    """Write ``history.csv`` and ``metrics.json``; neither holds a time.

    Args:
        rows: one an epoch: epoch, the learning rates of its last step, train_cross_entropy and val_cross_entropy in
            nats a token, val_token_accuracy, val_bleu_4 and val_cider_d where they were computed, tokens. Epochs of
            self-critical training have train_reward (the mean of the samples) and samples instead of
            train_cross_entropy and tokens. Epoch 0, the weights that a run began from, has only the metrics of
            validation. A missing value is an empty cell.
        best_epoch: the epoch whose weights are the model's.
        stopped: why training ended.
        trained_parameters: how many numbers were trained.
    """
    trained = [row for row in rows if row["epoch"]]
    columns = list(dict.fromkeys(name for row in trained or rows for name in row))
    lines = [
        ",".join(columns),
        *(",".join(_shown(row[name]) if name in row else "" for name in columns) for row in rows),
    ]
    write_atomically(folder / "history.csv", "\n".join(lines) + "\n")
    best = next(row for row in rows if row["epoch"] == best_epoch)
    metrics: dict[str, Any] = {
        "best_epoch": best_epoch,
        "epochs": len(trained),
        "parameters": trained_parameters,
        **{name: round(best[name], 6) for name in ("train_cross_entropy", "train_reward") if name in best},
        "val_cross_entropy": round(best["val_cross_entropy"], 6),
        "val_perplexity": round(math.exp(min(best["val_cross_entropy"], 700)), 4),
        "val_token_accuracy": round(best["val_token_accuracy"], 6),
        **{name: round(best[name], 6) for name in ("val_bleu_4", "val_cider_d") if name in best},
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


def _shown(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
