"""The golden captions: 126 COCO images, scored by pycocoevalcap 1.2 itself."""

from __future__ import annotations

import json

from captioner.metrics import METRICS
from tests.data import real_data


def golden() -> tuple[dict[int, list[str]], dict[int, str], dict[str, float]]:
    """References, candidates and the published scores."""
    folder = real_data("golden")
    candidates = {
        row["image_id"]: row["caption"] for row in json.loads((folder / "captions_126_results.json").read_text())
    }
    references: dict[int, list[str]] = {key: [] for key in candidates}
    for row in json.loads((folder / "captions_126_references.json").read_text())["annotations"]:
        if row["image_id"] in references:
            references[row["image_id"]].append(row["caption"])
    return references, candidates, json.loads((folder / "captions_126_scores.json").read_text())["scores"]


STANDARD = [name for name, metric in METRICS.items() if not metric.slow]  # metrics that every scoring has
