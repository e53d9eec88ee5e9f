"""The encoder's weights beside the model, where a reader of the model could not get them elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save

from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.parameters import ExtractParameters
from captioner.sidecar import write_atomically
from captioner.training.model_files import ENCODER

_FROM_A_FILE = "file"  # bundled and ImageNet weights are to be had everywhere, random ones are not worth having


def save_encoder(folder: Path, store: FeatureStore, extract: ExtractParameters) -> None:
    """Write ``encoder.safetensors`` (fp16, the cut classifier's state dict) where the weights came from a file of the
    user's.

    Raises:
        CaptionerError: the weights that ``extract.weights`` names now are not those that the features were made with.
    """
    if store.weights_name != _FROM_A_FILE:
        return
    from captioner.features.encoders import build_encoder

    encoder = build_encoder(store.encoder, extract.weights, extract.seed, image_size=extract.image_size)
    if encoder.weights_sha256 != store.weights_sha256:
        raise CaptionerError(
            f"extract.weights={extract.weights}: these weights ({encoder.weights_sha256[:12]}) are not those that made {store.path} "
            f"({store.weights_sha256[:12]}); give the same ones, or run the extract stage again"
        )
    state = encoder.body.state_dict()
    half = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in sorted(state.items())
    }
    if not all(torch.isfinite(tensor).all() for tensor in half.values() if tensor.is_floating_point()):
        raise CaptionerError(
            f"extract.weights={extract.weights}: a weight is too large for half precision; train this encoder's weights "
            "again with weight decay"
        )
    write_atomically(folder / ENCODER, save(half))
