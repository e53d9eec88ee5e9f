"""Reads what evaluation needs and refuses what does not belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from captioner.decoder import Decoder
from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.images.captions import CaptionSet
from captioner.images.store import ImageStore
from captioner.model_io import Model, check_features, check_words, load_model
from captioner.search import Ensemble


@dataclass(frozen=True)
class EvaluationInputs:
    """Checked inputs.

    Attributes:
        model: the trained captioner, on the CPU.
        decoder: what captions are searched with: the model's own, or an ensemble of it and others.
        store: features of all images of the splits.
        captions: references and splits.
        images: the images.
        splits: those that will be scored, in the order asked for, ``auto`` resolved.
    """

    model: Model
    decoder: Decoder | Ensemble
    store: FeatureStore
    captions: CaptionSet
    images: ImageStore
    splits: tuple[str, ...]


def load_inputs(
    models: Path, features: Path, captions: Path, images: Path, splits: tuple[str, ...], ensemble: tuple[str, ...] = ()
) -> EvaluationInputs:
    """Read and check.

    Args:
        splits: the splits that will be scored; ``auto`` is test where there are test images, else val.
        ensemble: folders of further models.

    Raises:
        CaptionerError: a file is missing or damaged; the features are of another encoder, other weights, another
            preprocessing or grid than the model was trained on, or of other images than ``images`` (both fingerprints
            are named); a split has no image; an image of a split is missing in the images or the features (its id is
            named); a further model has other words (the first is named) or was trained on other features.
    """
    model, store = load_model(models), FeatureStore.open(features)
    caption_set, image_store = CaptionSet.load(captions), ImageStore.open(images)
    check_features(model, store, models, "or train again")
    others = [load_model(folder) for folder in ensemble]
    for other, folder in zip(others, ensemble):
        check_words(
            f"evaluate.ensemble={folder}",
            other.vocabulary,
            model.vocabulary,
            "name models with one vocabulary, or leave it out",
        )
        check_features(other, store, folder, "or leave the model out of evaluate.ensemble")
    decoder = Ensemble([model.decoder, *(other.decoder for other in others)]) if others else model.decoder
    if store.images_fingerprint != image_store.fingerprint:
        raise CaptionerError(
            f"{store.path}: its features are of other images (fingerprint {store.images_fingerprint[:12]}) than "
            f"{image_store.path} "
            f"(fingerprint {image_store.fingerprint[:12]}); run the extract stage again"
        )
    auto = "test" if caption_set.image_ids("test") else "val"
    splits = tuple(dict.fromkeys(auto if split == "auto" else split for split in splits))
    for split in splits:
        ids = caption_set.image_ids(split)
        if not ids:
            remedy = f"{_REMEDIES[split]} and run the download stage again"
            raise CaptionerError(f"{caption_set.path}: no image in the split {split}; {remedy}")
        image_store.rows(ids)
        store.rows(ids)
    return EvaluationInputs(model, decoder, store, caption_set, image_store, splits)


_REMEDIES = {
    "test": "set evaluate.split=auto, or take a data set with test images",
    "val": "the beam size is chosen on it: set download.val_share, or mark images as val,",
}
