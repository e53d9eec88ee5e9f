"""Reads what training needs and refuses what does not belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioner.batches import CaptionTable
from captioner.errors import CaptionerError
from captioner.features.encoders import default_image_size, layer_option, weights_name
from captioner.features.store import FeatureStore
from captioner.fingerprint import fingerprint
from captioner.images.captions import CaptionSet
from captioner.parameters import Parameters, VocabParameters
from captioner.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Inputs:
    """Checked inputs of a training run.

    Attributes:
        store: the features.
        vocabulary: the words.
        embeddings: (V, D) float32 word vectors.
        train, val: captions as tokens.
        train_rows, val_rows: the features' row of each of their images.
        captions: all captions as written.
        max_length: tokens of a caption that are kept.
    """

    store: FeatureStore
    vocabulary: Vocabulary
    embeddings: np.ndarray
    train: CaptionTable
    val: CaptionTable
    train_rows: np.ndarray
    val_rows: np.ndarray
    captions: CaptionSet
    max_length: int


def load_inputs(parameters: Parameters, features: Path, captions: Path, vocab: Path, embeddings: Path) -> Inputs:
    """Read and check.

    Raises:
        CaptionerError: a file is missing or damaged; the features are of another encoder, preprocessing or weights than
            the parameters say (both fingerprints are named) or lack an image; the word vectors do not fit the
            vocabulary; a split has no caption.
    """
    store = FeatureStore.open(features)
    _check_features(store, parameters)
    caption_set, vocabulary = CaptionSet.load(captions), Vocabulary.load(vocab)
    vectors = load_embeddings(embeddings, vocabulary)
    max_length = vocabulary.max_length or VocabParameters.max_length
    train, val = (CaptionTable.build(caption_set, split, vocabulary, max_length) for split in ("train", "val"))
    return Inputs(
        store,
        vocabulary,
        vectors,
        train,
        val,
        store.rows(train.image_ids),
        store.rows(val.image_ids),
        caption_set,
        max_length,
    )


def load_embeddings(path: Path, vocabulary: Vocabulary) -> np.ndarray:
    """Word vectors (V, D) float32.

    Raises:
        CaptionerError: no array of finite numbers with one row a word.
    """
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CaptionerError(f"{path}: no readable array of word vectors ({error}); run the vocab stage") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.shape[1] == 0:
        raise CaptionerError(
            f"{path}: word vectors must be a (V, D) array of floating-point numbers; run the vocab stage again"
        )
    if len(vectors) != len(vocabulary):
        raise CaptionerError(
            f"{path}: {len(vectors)} word vectors for a vocabulary of {len(vocabulary)} words; run the vocab "
            "stage again, it makes both"
        )
    if not np.isfinite(vectors).all():
        raise CaptionerError(
            f"{path}: the vector of the word {vocabulary.words[int(np.argmin(np.isfinite(vectors).all(1)))]!r} is not "
            "finite; run the vocab stage again"
        )
    return vectors.astype(np.float32)


def _check_features(store: FeatureStore, parameters: Parameters) -> None:
    wanted: dict[str, Any] = {
        "encoder": parameters.encoder,
        "fit": parameters.extract.fit,
        "image_size": parameters.extract.image_size or default_image_size(parameters.encoder),
    }
    found: dict[str, Any] = {
        "encoder": store.encoder,
        "fit": store.preprocessing["fit"],
        "image_size": store.preprocessing["image_size"],
    }
    wanted["layer"], found["layer"] = parameters.extract.layer, layer_option(store.layer)
    if parameters.extract.crop_pct:
        wanted["crop_pct"], found["crop_pct"] = parameters.extract.crop_pct, store.preprocessing.get("crop_pct", 1.0)
    if parameters.extract.weights in ("bundled", "imagenet", "pretrained", "package", "random"):
        wanted["weights"] = weights_name(parameters.encoder, parameters.extract.weights)
        found["weights"] = store.weights_name
    different = [name for name in wanted if wanted[name] != found[name]]
    if different:
        raise CaptionerError(
            f"{store.path}: its features (settings {fingerprint(found)[:12]}) were made with "
            f"{', '.join(f'{name}={found[name]}' for name in different)}, but the "
            f"parameters (settings {fingerprint(wanted)[:12]}) say "
            f"{', '.join(f'{name}={wanted[name]}' for name in different)}; run the extract stage again"
        )
