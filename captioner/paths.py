"""Paths of the pipeline's files, relative to the project root. dvc.yaml lists the same paths."""

from __future__ import annotations

from pathlib import Path

DATA = Path("data")
CHECKED = DATA / "checked.txt"
SOURCES = Path("sources")
MODELS = Path("models")
RESULTS = Path("results")
TRAIN_RESULTS = RESULTS / "train"
EVALUATE_RESULTS = RESULTS / "evaluate"
HISTORY = TRAIN_RESULTS / "plots" / "metrics"
REPORT = RESULTS / "report" / "index.html"
PARAMETERS = Path("params.yaml")


def folder(dataset: str) -> Path:
    """The folder of one data set."""
    return DATA / dataset


def images(dataset: str) -> Path:
    """The images, written by ``download``."""
    return folder(dataset) / "images.h5"


def captions(dataset: str) -> Path:
    """Reference captions and splits, written by ``download``."""
    return folder(dataset) / "captions.json"


def skipped(dataset: str) -> Path:
    """Images that ``download`` skipped, each with the reason."""
    return folder(dataset) / "skipped.csv"


def features(dataset: str, encoder: str) -> Path:
    """Features of one encoder, written by ``extract``."""
    return folder(dataset) / "features" / f"{encoder}.h5"


def vocab(dataset: str) -> Path:
    """The vocabulary, written by ``vocab``."""
    return folder(dataset) / "vocab.json"


def embeddings(dataset: str) -> Path:
    """Word vectors, written by ``vocab``."""
    return folder(dataset) / "embeddings.npy"
