"""What a training run reports: one row an epoch, and the best epoch's numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from captioner.sidecar import write_atomically

COLUMNS = ("epoch", "learning_rate", "projection_learning_rate", "train_cross_entropy", "val_cross_entropy", "val_token_accuracy", "tokens")


def write_history(folder: Path, rows: list[dict[str, Any]], best_epoch: int, trained_parameters: int) -> None:
    """Write ``history.csv`` and ``metrics.json``. Cross entropies are in nats a token; neither file holds a time."""
    lines = [",".join(COLUMNS), *(",".join(_shown(row[name]) for name in COLUMNS) for row in rows)]
    write_atomically(folder / "history.csv", "\n".join(lines) + "\n")
    best = rows[best_epoch - 1]
    metrics = {
        "best_epoch": best_epoch,
        "epochs": len(rows),
        "parameters": trained_parameters,
        "train_cross_entropy": round(best["train_cross_entropy"], 6),
        "val_cross_entropy": round(best["val_cross_entropy"], 6),
        "val_perplexity": round(math.exp(min(best["val_cross_entropy"], 700)), 4),
        "val_token_accuracy": round(best["val_token_accuracy"], 6),
    }
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")


def write_timing(folder: Path, seconds: list[float], captions: int) -> None:
    """Write ``timing.json``: seconds of each epoch, interruptions left out, and training captions a second, validation included."""
    timing = {
        "seconds": round(sum(seconds), 3),
        "epoch_seconds": [round(value, 3) for value in seconds],
        "captions_per_second": round(captions * len(seconds) / max(sum(seconds), 1e-9), 1),
    }
    write_atomically(folder / "timing.json", json.dumps(timing, indent=1) + "\n")


def _shown(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
