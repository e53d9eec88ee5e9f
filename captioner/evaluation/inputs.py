"""Reads what evaluation needs and refuses what does not belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.fingerprint import fingerprint
from captioner.images.captions import CaptionSet
from captioner.images.store import ImageStore
from captioner.training.model_files import Model, load_model


@dataclass(frozen=True)
class EvaluationInputs:
    """Checked inputs.

    Attributes:
        model: the trained captioner, on the CPU.
        store: features of all pictures of the splits.
        captions: references and splits.
        images: the pictures.
        splits: those that will be scored, in the order asked for, ``auto`` resolved.
    """

    model: Model
    store: FeatureStore
    captions: CaptionSet
    images: ImageStore
    splits: tuple[str, ...]


def load_inputs(models: Path, features: Path, captions: Path, images: Path, splits: tuple[str, ...]) -> EvaluationInputs:
    """Read and check.

    Args:
        splits: the splits that will be scored; ``auto`` is test where there are test pictures, else val.

    Raises:
        CaptionerError: a file is missing or damaged; the features are of another encoder, other weights, another preprocessing or grid than
            the model was trained on, or of other pictures than ``images`` (both fingerprints are named); a split has no picture; a picture
            of a split is missing in the images or the features (its id is named).
    """
    model, store = load_model(models), FeatureStore.open(features)
    caption_set, image_store = CaptionSet.load(captions), ImageStore.open(images)
    _check_features(store, model, models)
    if store.images_fingerprint != image_store.fingerprint:
        raise CaptionerError(
            f"{store.path}: its features are of other pictures (fingerprint {store.images_fingerprint[:12]}) than {image_store.path} "
            f"(fingerprint {image_store.fingerprint[:12]}); run the extract stage again"
        )
    auto = "test" if caption_set.image_ids("test") else "val"
    splits = tuple(dict.fromkeys(auto if split == "auto" else split for split in splits))
    for split in splits:
        ids = caption_set.image_ids(split)
        if not ids:
            remedy = f"{_REMEDIES[split]} and run the download stage again"
            raise CaptionerError(f"{caption_set.path}: no picture in the split {split}; {remedy}")
        image_store.rows(ids)
        store.rows(ids)
    return EvaluationInputs(model, store, caption_set, image_store, splits)


_REMEDIES = {
    "test": "set evaluate.split=auto, or take a data set with test pictures",
    "val": "the beam size is chosen on it: set download.val_share, or mark pictures as val,",
}


def _check_features(store: FeatureStore, model: Model, models: Path) -> None:
    found, wanted = _facts_of_store(store), _facts_of_model(model)
    different = [name for name in wanted if wanted[name] != found[name]]
    if different:
        differences = "; ".join(f"{name} is {_short(found[name])}, not {_short(wanted[name])}" for name in different)
        raise CaptionerError(
            f"{store.path}: these features (fingerprint {fingerprint(found)[:12]}) are not of the kind that the model in {models} was "
            f"trained on (fingerprint {fingerprint(wanted)[:12]}): {differences}; extract features with the model's settings, or train "
            "again"
        )


def _facts_of_store(store: FeatureStore) -> dict[str, Any]:
    return {
        "encoder": store.encoder, "layer": store.layer, "weights_sha256": store.weights_sha256, "preprocessing": store.preprocessing,
        "grid": list(store.grid), "channels": store.shape[3],
    }  # fmt: skip


def _facts_of_model(model: Model) -> dict[str, Any]:
    kept = {name: model.config[name] for name in ("encoder", "layer", "weights_sha256", "preprocessing", "grid")}
    return {**kept, "channels": model.decoder.config.channels}


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
