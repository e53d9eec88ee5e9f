"""A small data set with something to learn: the features of an image say which words its captions have."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from captioner.features.store import write_features
from captioner.images.captions import write_captions
from captioner.parameters import Parameters, parse_parameters
from captioner.training import train
from captioner.training.data import epoch_batches
from captioner.training.inputs import Inputs, load_inputs
from captioner.training.logs import CURVES
from captioner.vocabulary.vocabulary import Vocabulary, build_vocabulary

ANIMALS, COLOURS, PLACES = ["cat", "dog", "horse", "bird"], ["red", "blue", "green"], ["beach", "road", "field"]
POSITIONS, CHANNELS = 4, 12


def make_data(
    folder: Path,
    images: int = 40,
    views: int = 1,
    encoder: str = "squeezenet1_1",
    seed: int = 0,
    fingerprint: str = "0" * 64,
    stated: dict[str, int] | None = None,
    **facts: Any,
) -> dict[str, Path]:
    """Write features, captions, vocabulary and word vectors; the keys are train's keyword arguments.

    A fifth of the images is val.

    Args:
        fingerprint: of the images file.
        stated: how the images were stored, as the features file says.
        facts: of the features file.
    """
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    features = generator.normal(0, 0.3, (images, views, POSITIONS, CHANNELS)).astype(np.float16)
    rows, annotations, texts = [], [], []
    for number in range(images):
        kinds = [generator.integers(len(words)) for words in (ANIMALS, COLOURS, PLACES)]
        features[number, :, generator.integers(POSITIONS), kinds[0]] += 2
        features[number, :, generator.integers(POSITIONS), 4 + kinds[1]] += 2
        features[number, :, generator.integers(POSITIONS), 8 + kinds[2]] += 2
        animal, colour, place = ANIMALS[kinds[0]], COLOURS[kinds[1]], PLACES[kinds[2]]
        split = "val" if number % 5 == 0 else "train"
        rows.append({"id": 100 + number, "file_name": f"{number}.jpg", "split": split, "height": 8, "width": 8})
        captions = [
            f"a {colour} {animal} on the {place}",
            f"the {animal} is {colour} and stands on a {place}",
            f"a {place} with a {colour} {animal}",
        ]
        for text in captions[: 3 - number % 3 if number % 7 == 0 else 3]:
            annotations.append({"id": len(annotations), "image_id": 100 + number, "caption": text})
            texts.append(text)
    paths = {
        name: folder / file
        for name, file in (
            ("features", "f.h5"),
            ("captions", "captions.json"),
            ("vocab", "vocab.json"),
            ("embeddings", "e.npy"),
        )
    }
    write_features(
        paths["features"],
        features,
        [row["id"] for row in rows],
        {"encoder": encoder, "weights_name": "bundled", "images": fingerprint, **facts},
        stated,
    )
    write_captions(paths["captions"], rows, annotations, {})
    words = build_vocabulary(texts).words
    vocabulary = Vocabulary(words, [0] * len(words), {"max_length": 12})
    vocabulary.save(paths["vocab"])
    np.save(paths["embeddings"], generator.normal(0, 0.4, (len(vocabulary), 8)).astype(np.float32))
    return paths


def small_parameters(
    seed: int = 1, decoder: str = "gru", attention: str = "soft", encoder: str = "squeezenet1_1", **train_options: Any
) -> Parameters:
    """Parameters of a tiny decoder; ``train_options`` go into the section train."""
    options = {
        "hidden_size": 16,
        "attention_size": 8,
        "feature_size": 12,
        "batch_size": 16,
        "epochs": 3,
        "learning_rate": 0.01,
        "projection_learning_rate": 0.01,
    }
    content = {
        "seed": seed,
        "decoder": decoder,
        "attention": attention,
        "encoder": encoder,
        "train": {**options, **train_options},
    }
    return parse_parameters({**content, "runtime": {"device": "cpu", "threads": 1, "checkpoint_seconds": 60}})


def run(folder: Path, data: dict[str, Path], parameters: Parameters) -> Path:
    """Train into ``folder``; returns it."""
    train(parameters, **data, models=folder / "models", results=folder / "results")
    return folder


def read_data(data: dict[str, Path]) -> Inputs:
    """The inputs of a run with the usual parameters."""
    return load_inputs(small_parameters(), *(data[name] for name in ("features", "captions", "vocab", "embeddings")))


def batches_of(data: dict[str, Path], epochs: int) -> list[int]:
    """How many batches each epoch of the usual parameters has."""
    inputs = read_data(data)
    return [len(epoch_batches(inputs.train, 16, 0, 1, seed=1, epoch=epoch)) for epoch in range(1, epochs + 1)]


def history(folder: Path) -> list[dict[str, str]]:
    """The learning curves of a run, one row an epoch; an empty cell where an epoch lacks a metric."""
    curves: dict[str, dict[int, str]] = {}
    for path in sorted((folder / "results" / CURVES).iterdir()):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert len({row["step"] for row in rows}) == len(rows), path  # no epoch twice
        curves[path.stem] = {int(row["step"]): row[path.stem] for row in rows}
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    return [{"epoch": str(epoch), **{name: curve.get(epoch, "") for name, curve in curves.items()}} for epoch in epochs]


def history_numbers(folder: Path) -> list[dict[str, float]]:
    """The same of a run without empty cells."""
    return [{name: float(value) for name, value in row.items()} for row in history(folder)]


def metrics(folder: Path) -> dict[str, Any]:
    """A run's metrics.json."""
    return json.loads((folder / "results/metrics.json").read_text())


def with_runtime(parameters: Parameters, **changes: Any) -> Parameters:
    return dataclasses.replace(parameters, runtime=dataclasses.replace(parameters.runtime, **changes))


def result_bytes(folder: Path) -> dict[str, bytes]:
    """The files that must not differ between an interrupted and an uninterrupted run."""
    names = ["models/model.safetensors", "models/config.json", "results/metrics.json"]
    curves = [path.relative_to(folder).as_posix() for path in (folder / "results" / CURVES).iterdir()]
    return {name: (folder / name).read_bytes() for name in (*names, *sorted(curves))}
