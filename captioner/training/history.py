"""What a training run reports: one row an epoch, and the best epoch's numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from captioner.sidecar import write_atomically

def write_history(folder: Path, rows: list[dict[str, Any]], best_epoch: int, stopped: str, trained_parameters: int) -> None:
    """Write ``history.csv`` and ``metrics.json``; neither holds a time.

    Args:
        rows: an epoch each, with the same keys: epoch, the learning rates of its last step, train_cross_entropy and val_cross_entropy
            in nats a token, val_token_accuracy, val_bleu_4 and val_cider_d where the run computed them, tokens.
        stopped: why training ended.
    """
    lines = [",".join(rows[0]), *(",".join(map(_shown, row.values())) for row in rows)]
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
        **{name: round(best[name], 6) for name in ("val_bleu_4", "val_cider_d") if name in best},
        "stopped": stopped,
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
