"""A trained decoder for another run to begin from (``train.init_from``)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from captioner.decoder import DecoderConfig
from captioner.errors import CaptionerError
from captioner.fingerprint import sha256_of_file
from captioner.model_io import WEIGHTS, check_features, check_words, load_model
from captioner.training.inputs import Inputs

_MAY_DIFFER = ("dropout", "tune_embeddings")  # how a decoder learns; the others say what its weights mean
_PARAMETERS = {
    "decoder": "decoder",
    "attention": "attention",
    "vector_size": "vocab.dimension",
    "max_length": "vocab.max_length",
}  # the others are train.<setting>


@dataclass(frozen=True)
class Initial:
    """Weights to begin from.

    Attributes:
        weights: the decoder's whole state dict, word vectors included, on the CPU.
        sha256: of ``model.safetensors``.
    """

    weights: dict[str, Tensor]
    sha256: str


def load_initial(folder: str | None, config: DecoderConfig, inputs: Inputs) -> Initial | None:
    """Read a model folder and check that its weights mean the same here; None where none is asked for.

    Args:
        folder: ``train.init_from``.
        config: of the decoder that will be trained.
        inputs: what it will be trained on.

    Raises:
        CaptionerError: a file is missing or damaged; the model has other words, another decoder (the setting and both
            values are named), or was trained on features of another kind.
    """
    if folder is None:
        return None
    model = load_model(folder)
    where = f"train.init_from={folder}"
    check_words(
        where,
        model.vocabulary,
        inputs.vocabulary,
        "use the dataset and the parameters vocab.* that it was trained with, or leave it out",
    )
    check_features(model, inputs.store, folder, "or leave out train.init_from")
    names = [field.name for field in dataclasses.fields(config) if field.name not in _MAY_DIFFER]
    if model.decoder.longest is None:
        names.remove("max_length")
    for name in sorted(names, key=lambda name: name != "vector_size"):  # first, since others follow it
        theirs, ours = getattr(model.decoder.config, name), getattr(config, name)
        if theirs != ours:
            parameter = _PARAMETERS.get(name, f"train.{name}")
            raise CaptionerError(
                f"{where}: its decoder has {name}={theirs}, not {ours}; set {parameter}={theirs}, or leave it out"
            )
    weights = model.decoder.state_dict()
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CaptionerError(
                f"{where}: its tensor {name} is not finite; copy the model's folder again, or name another one"
            )
    return Initial(weights, sha256_of_file(Path(folder) / WEIGHTS))
