"""A report's data made by hand."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

SCRIPT = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
CAPTIONS = ["a dog runs", "two cats sleep on a bed", f"a {SCRIPT} dog"]
SCORES = [50.0, 200.0, 100.0]


def webp(colour: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "WEBP")
    return base64.b64encode(stream.getvalue()).decode()


def experiment(captions: list[str] = CAPTIONS, scores: list[float] = SCORES) -> dict[str, Any]:
    """Each word looks at one cell of a grid of 2 x 2: the first word at cell 0, the second at cell 1, and so on."""

    def attention(words: list[str]) -> dict[str, Any]:
        cells = np.zeros((len(words), 4), np.uint8)
        cells[np.arange(len(words)), np.arange(len(words)) % 4] = 255
        return {"cells": base64.b64encode(cells.tobytes()).decode(), "box": [0, 0, 1, 1]}

    rows = [
        {
            "words": text.split(),
            "attention": attention(text.split()),
            "scores": {"cider_d": score, "bleu_4": 100 - score / 4},
            "log_probability": -1.0,
            "novelty": index / 2,
        }
        for index, (text, score) in enumerate(zip(captions, scores))
    ]
    return {
        "name": "net + gru, soft attention",
        "signature": {"images": 3, "references": 6, "split": "test", "beam": 3, "fingerprint": "f"},
        "scores": {
            "cider_d": {"value": 100.0, "low": 90.0, "high": 110.0, "val": 120.0},
            "cross_entropy": {"value": 2.0, "low": None, "high": None, "val": 2.1},
        },
        "history": {
            "epoch": [1, 2, 3],
            "train_cross_entropy": [3.0, 2.5, 2.2],
            "val_cross_entropy": [3.1, 2.7, 2.6],
            "val_token_accuracy": [30.0, 35.0, 36.0],
        },
        "beam_sweep": {"sizes": [1, 3], "chosen": 3, "values": {"cider_d": [90.0, 100.0], "bleu_4": [20.0, 25.0]}},
        "lengths": {"generated": [0, 0, 0, 2, 0, 0, 1], "references": [0, 0, 0, 3, 3]},
        "parameters": {"decoder": "gru", "train": {"epochs": 3}},
        "model": {"layer": SCRIPT},
        "fingerprints": {"model": "abc"},
        "warnings": ["Mind the <b>gap</b>."],
        "seconds": None,
        "commit": {"hash": "0123456789" * 4, "date": "2026-11-28", "changed": ["params.yaml"]},
        "grid": [2, 2],
        "captions": rows,
    }


def data(**changes: Any) -> dict[str, Any]:
    names, colours = ["one.jpg", "two.jpg", f"{SCRIPT}.jpg"], [(200, 40, 40), (40, 200, 40), (40, 40, 200)]
    images = [
        {
            "id": number,
            "name": name,
            "webp": webp(colour),
            "width": 60,
            "height": 40,
            "references": [f"reference {number}", "a horse </script> & more"],
        }
        for number, (name, colour) in enumerate(zip(names, colours), 1)
    ]
    return {
        "title": f"photos: {SCRIPT}",
        "dataset": "photos",
        "total": 3,
        "images": images,
        "experiments": [experiment()],
        "pairs": [],
        **changes,
    }


def repeated(count: int, sample: int) -> dict[str, Any]:
    """Data of ``count`` images with ids 0, 1, ..., of which the first ``sample`` are shown; the three of ``data`` over
    and over."""
    made = data()
    [one] = made["experiments"]
    images = [{**made["images"][index % 3], "id": index} for index in range(count)]
    captions = [one["captions"][index % 3] for index in range(count)]
    for index in range(sample, count):
        for name in ("webp", "width", "height"):
            del images[index][name]
        captions[index] = {**captions[index], "attention": None}
    return data(images=images, total=count, experiments=[{**one, "captions": captions}])
