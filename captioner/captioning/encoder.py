"""The encoder that a model was trained with, built again for further images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from captioner.errors import CaptionerError
from captioner.features.encoders import Encoder, build_encoder, layer_option
from captioner.features.forward import ImageEncoder, resolve_precision
from captioner.model_io import CONFIG, ENCODER, Model, check_sha256


def load_encoder(folder: Path, model: Model, device: torch.device) -> ImageEncoder:
    """The encoder of the model in ``folder``, on ``device``, in the arithmetic that its features were made in.

    bf16 on a processor that does not compute in it would take ages: fp32 is taken there, and features differ in their
        last bits.

    Raises:
        CaptionerError: its weights are not to be had here, or are others than the model was trained with.
    """
    config = model.config
    precision = config["precision"]
    if precision == "bf16":
        precision = resolve_precision("auto", device)
    encoder = _build(folder, model)
    seen = config["preprocessing"]
    encoder.spec = replace(encoder.spec, mean=tuple(seen["mean"]), std=tuple(seen["std"]))
    wanted = (tuple(config["grid"]), model.decoder.config.channels)
    if (encoder.grid, encoder.channels) != wanted:
        raise CaptionerError(
            f"{folder / CONFIG}: {encoder.name} gives a grid of {encoder.grid} with {encoder.channels} channels, not "
            f"{wanted}; copy the model's folder again"
        )
    return ImageEncoder(encoder, device, precision)


def _build(folder: Path, model: Model) -> Encoder:
    config = model.config
    kind, name, path = config["weights_name"], config["encoder"], folder / ENCODER
    if kind == "file" and not path.is_file():
        raise CaptionerError(
            f"{path}: the encoder's weights are not there; copy the model's folder as a whole, or train again"
        )
    if kind == "file":
        check_sha256(path, config)
    weights = str(path) if kind == "file" else kind
    side = math.isqrt(model.decoder.config.positions)
    image_size = config["preprocessing"]["image_size"]
    try:
        encoder = build_encoder(name, weights, config["weights_seed"], side, image_size, layer_option(config["layer"]))
    except CaptionerError as error:
        if kind != "imagenet":  # of other families the message has the remedy
            raise
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise CaptionerError(
            f"{error.message.split(';')[0]}; run once with a network, or put that file into {cache}"
        ) from error
    # a file's weights are stored in half precision, so their hash is another
    if kind != "file" and encoder.weights_sha256 != config["weights_sha256"]:
        raise CaptionerError(
            f"{folder / CONFIG}: {name}'s {kind} weights here ({encoder.weights_sha256[:12]}) are not those that the "
            "model was trained with "
            f"({str(config['weights_sha256'])[:12]}); take the version of this program (or of torchvision or timm) "
            "that trained it, or train again"
        )
    return encoder
