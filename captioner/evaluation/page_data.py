"""What the report shows of one evaluation, as plain data (``captioner.report.page`` renders it)."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioner.comparison.bootstrap import interval, resample
from captioner.comparison.repository import Checkout
from captioner.drawing import Example, attention_weights, fit
from captioner.errors import CaptionerError
from captioner.evaluation.files import Evaluation, display, metrics, signature
from captioner.evaluation.inputs import EvaluationInputs
from captioner.images.captions import CaptionSet
from captioner.metrics import METRICS
from captioner.metrics.diversity import DIVERSITY
from captioner.metrics.registry import TEACHER_FORCING
from captioner.parameters import Parameters
from captioner.vocabulary.tokenizers import ENGLISH, Tokenizer

_SIDE, _QUALITY = 400, 75  # of an image in the page: a photo has some 13 KB
_NOVEL = 4  # words of a phrase that is looked for in the training captions


def page_data(
    parameters: Parameters,
    inputs: EvaluationInputs,
    evaluation: Evaluation,
    shown: Mapping[int, Example],
    history: Path | None,
    warnings: Sequence[str],
    commit: Checkout | None,
) -> dict[str, Any]:
    """Everything on the page of one experiment, scores in percent; no time and no path, so that the same run gives
    the same bytes.

    Args:
        shown: image id -> what to show of it, in the order they were sampled.
        history: training's folder of curves; None: no learning curves.
        warnings: what the reader of the scores must know.
        commit: of the code that evaluates; None where there is no repository.

    Raises:
        CaptionerError: ``history`` cannot be read.
    """
    model, config = inputs.model, inputs.model.config
    scores = evaluation.scores[evaluation.split][evaluation.beam]
    ids = [*shown, *(image for image in evaluation.hypotheses if image not in shown)]
    words = {image: [model.vocabulary.words[word] for word in evaluation.hypotheses[image].tokens] for image in ids}
    novel = novelty(words, inputs.captions, model.vocabulary.tokenizer)
    experiment = {
        "name": f"{config['encoder']} + {config['decoder']['decoder']}, {config['decoder']['attention']} attention",
        "signature": signature(evaluation),
        "scores": _scores(evaluation),
        "history": None if history is None else read_curves(history),
        "beam_sweep": _beam_sweep(evaluation),
        "lengths": _lengths(inputs, evaluation),
        "parameters": _settings(config, parameters),
        "model": {
            key: config[key]
            for key in ("decoder", "layer", "weights_name", "weights_license", "grid", "preprocessing")
            if key in config
        },
        "fingerprints": {
            "model": config["fingerprint"],
            "features": inputs.store.fingerprint,
            "images": inputs.images.fingerprint,
            "captions": inputs.captions.fingerprint,
            "encoder weights": inputs.store.weights_sha256,
        },
        "warnings": list(warnings),
        "seconds": None,
        "commit": None if commit is None else dataclasses.asdict(commit),
        "grid": list(inputs.store.grid),
        "captions": [
            {
                "words": words[image],
                "text": model.vocabulary.decode(evaluation.hypotheses[image].tokens),
                "attention": _attention(shown[image]) if image in shown else None,
                "scores": {name: round(display(name, scores.per_image[image][name]), 2) for name in scores.overall},
                "log_probability": round(float(evaluation.hypotheses[image].log_probability), 4),
                "novelty": novel[image],
            }
            for image in ids
        ],
    }
    images = [
        {
            "id": image,
            "name": inputs.captions.file_name(image),
            "references": inputs.captions.captions(image),
            **(_webp(shown[image].image) if image in shown else {}),
        }
        for image in ids
    ]
    title = f"{parameters.dataset}: {experiment['name']}"
    return {
        "title": title,
        "dataset": parameters.dataset,
        "total": len(evaluation.hypotheses),
        "images": images,
        "experiments": [experiment],
        "pairs": [],
    }


def novelty(
    captions: Mapping[int, Sequence[str]], known: CaptionSet, tokenizer: Tokenizer = ENGLISH
) -> dict[int, float]:
    """Of each caption the share of its phrases of four words (all of it, where it is shorter) that no training caption
    has.

    Args:
        captions: image id -> words.
        known: training captions among others, as written.
        tokenizer: that makes words of them.
    """
    phrases = {image: list(_phrases(words, min(_NOVEL, max(1, len(words))))) for image, words in captions.items()}
    sizes = {len(phrase) for group in phrases.values() for phrase in group}
    new = {phrase for group in phrases.values() for phrase in group}
    for image in known.image_ids("train"):
        for text in known.captions(image):
            words = tokenizer.tokenize(text)
            for size in sizes:
                new.difference_update(_phrases(words, size))
    return {
        image: round(sum(phrase in new for phrase in group) / len(group), 4) if group else 0.0
        for image, group in phrases.items()
    }


def _phrases(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[first:] for first in range(size)), strict=False)


def _scores(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    """Figure -> value, 95 % bootstrap interval over images where there is one, and the value on validation where it was
    computed."""
    every = metrics(evaluation)
    [drawn] = resample([evaluation.scores[evaluation.split][evaluation.beam].statistics])
    found: dict[str, dict[str, float | None]] = {}
    for name in (*METRICS, *TEACHER_FORCING, *DIVERSITY):
        if name in every:
            low, high = (display(name, limit) for limit in interval(drawn[name])) if name in drawn else (None, None)
            found[name] = {"value": every[name], "low": low, "high": high, "val": every.get(f"val_{name}")}
    return found


def _beam_sweep(evaluation: Evaluation) -> dict[str, Any]:
    """Beam sizes, and of each metric its values on the headline split."""
    headline = evaluation.scores[evaluation.split]
    sizes = sorted(headline)
    values = {
        name: [display(name, headline[size].overall[name]) for size in sizes]
        for name, metric in METRICS.items()
        if not metric.slow and name in headline[sizes[0]].overall
    }
    return {"sizes": sizes, "chosen": evaluation.beam, "values": values}


def _lengths(inputs: EvaluationInputs, evaluation: Evaluation) -> dict[str, list[int]]:
    """How many captions have 0, 1, 2, ... words: generated ones of the whole split, and its references."""
    generated = Counter(len(hypothesis.tokens) for hypothesis in evaluation.hypotheses.values())
    references = Counter(
        len(evaluation.vocabulary.tokenize(text))
        for image in evaluation.hypotheses
        for text in inputs.captions.captions(image)
    )
    longest = max([*generated, *references])
    return {
        name: [counts[length] for length in range(longest + 1)]
        for name, counts in (("generated", generated), ("references", references))
    }


def _settings(config: Mapping[str, Any], parameters: Parameters) -> dict[str, Any]:
    """What the model was trained with, as stored in it, and what evaluation ran with; params.yaml may have changed
    between the two."""
    training = dict(config["training"])
    seed = {"seed": training.pop("seed")} if "seed" in training else {}
    return {
        "dataset": config["dataset"],
        "encoder": config["encoder"],
        "decoder": config["decoder"]["decoder"],
        "attention": config["decoder"]["attention"],
        **seed,
        "train": training,
        "evaluate": dataclasses.asdict(parameters.evaluate),
    }


def _attention(example: Example) -> dict[str, Any] | None:
    """Cells as bytes, 255 at a word's largest weight and 0 at an even share or less, word by word; and the part of the
    image that they cover."""
    if example.attention is None or not len(example.words):
        return None
    cells = np.stack([attention_weights(weights) for weights in example.attention[: len(example.words)]])
    return {
        "cells": base64.b64encode((cells * 255).round().astype(np.uint8).tobytes()).decode("ascii"),
        "box": [round(float(side), 4) for side in example.box],
    }


def _webp(image: Image.Image) -> dict[str, Any]:
    small, stream = fit(image, _SIDE) if max(image.size) > _SIDE else image.convert("RGB"), io.BytesIO()
    small.save(stream, "WEBP", quality=_QUALITY)
    return {"webp": base64.b64encode(stream.getvalue()).decode("ascii"), "width": small.width, "height": small.height}


def read_curves(folder: Path) -> dict[str, list[float | None]]:
    """The learning curves that training logged: ``epoch``, and every metric by epoch; None where it was not measured.

    Args:
        folder: with ``<metric>.tsv``, each with the columns ``step`` (the epoch) and ``<metric>``.

    Raises:
        CaptionerError: a file is missing or damaged.
    """
    path, curves = folder, {}
    try:
        for path in sorted(folder.iterdir()):
            with open(path, newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file, delimiter="\t")
                curves[path.stem] = {int(row["step"]): _number(row[path.stem]) for row in rows}
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read ({error.strerror}); run the train stage") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CaptionerError(f"{path}: no learning curve ({error}); run the train stage again") from error
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    columns: dict[str, list[float | None]] = {"epoch": list(epochs)}
    return columns | {name: [curve.get(epoch) for epoch in epochs] for name, curve in curves.items()}


def _number(text: str) -> float | None:
    value = float(text)
    return value if np.isfinite(value) else None
