"""Weights of an encoder: where they come from, whether they fit, and the hash of what they are."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captioner.errors import CaptionerError
from captioner.features.bundled import ENCODER as BUNDLED_ENCODER
from captioner.features.bundled import weights_path

BUNDLED_DATASET = "scenes"
_COUNTER = "num_batches_tracked"  # of batch normalisation; the encoder does not use it, and older files lack it


def content_sha256(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's weights: names, shapes and float32 values in the order of the names.

    The same weights have the same hash whatever file, number format or classification head they came with.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not name.endswith(_COUNTER):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_name(encoder: str, weights: str) -> str:
    """What weights are called in features and models: bundled, imagenet, pretrained, package, random, or else file.

    Published weights are ``extract.weights=pretrained`` or ``imagenet``, one and the same. Files of torchvision's
    encoders call them imagenet, so that those made before stay valid.
    """
    if weights in ("imagenet", "pretrained"):
        return "pretrained" if encoder.startswith("timm/") else "imagenet"
    return weights


def load_weights(
    body: nn.Module,
    encoder: str,
    weights: str,
    known: Set[str],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> str:
    """Fill an encoder with weights from a file.

    Args:
        body: the cut classifier, filled in place.
        encoder: its name.
        weights: bundled, or the path of a ``.pth``, ``.pt`` or ``.safetensors`` file, or of a folder of
            ``<encoder>.pth|.safetensors`` (of timm/NAME: ``NAME``).
        known: names of the whole classifier; the head and auxiliary heads may be there, not be there, or have another
            size.
        convert: from the names and shapes of an older or original file to the encoder's; called where they do not fit.

    Returns:
        What the weights are called: bundled or file.

    Raises:
        CaptionerError: no such file, no state dict, or one of another encoder; the keys that do not fit are named.
    """
    path = bundled_file(encoder) if weights == "bundled" else find_file(encoder, weights)
    state = {_modern(name): tensor for name, tensor in read_tensors(path).items()}
    own = {name: tensor for name, tensor in body.state_dict().items() if not name.endswith(_COUNTER)}
    fits = all(name in state and state[name].shape == own[name].shape for name in own) and known >= state.keys()
    if convert and not fits:
        state = convert(state)
    missing = sorted(name for name in own if name not in state)
    shapes = sorted(name for name in own if name in state and state[name].shape != own[name].shape)
    foreign = sorted(name for name in state if name not in known and not name.endswith(_COUNTER))
    if missing or shapes or foreign:
        faults = [
            f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
            for names, what in ((missing, "missing"), (shapes, "of another shape"), (foreign, "unknown"))
            if names
        ]
        raise CaptionerError(
            f"{path}: these are no weights of {encoder}: {'; '.join(faults)}; give the weights of this encoder, "
            "or extract.weights=pretrained"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])  # any number format; the encoder's own is float32
    return "bundled" if weights == "bundled" else "file"


def bundled_file(encoder: str) -> Path:
    """The project's own weights file.

    Raises:
        CaptionerError: they are of another encoder, or absent.
    """
    if encoder != BUNDLED_ENCODER:
        raise CaptionerError(
            f"extract.weights=bundled: the bundled weights are of {BUNDLED_ENCODER}, not of {encoder}; "
            "use extract.weights=pretrained (fetched from the network), the path of a weights file, "
            f"or encoder={BUNDLED_ENCODER}"
        )
    if not weights_path().is_file():
        raise CaptionerError(
            f"{weights_path()}: the bundled weights are not there; "
            f"get them back with: git checkout -- {weights_path().name}"
        )
    return weights_path()


def find_file(encoder: str, weights: str) -> Path:
    """The weights file that ``extract.weights`` means: itself, or the encoder's in the folder."""
    path, encoder = Path(weights).expanduser(), encoder.rsplit("/", 1)[-1]
    if path.is_dir():
        for suffix in (".safetensors", ".pth", ".pt"):
            if (path / f"{encoder}{suffix}").is_file():
                return path / f"{encoder}{suffix}"
        raise CaptionerError(
            f"{path}: this folder has no {encoder}.pth and no {encoder}.safetensors; "
            "put the weights there, or give the path of the file"
        )
    if not path.is_file():
        raise CaptionerError(
            f"extract.weights={weights}: no such file or folder; it may also be bundled, pretrained, package or random"
        )
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name; nothing in the file is ever executed."""
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        safetensors.SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise CaptionerError(
            f"{path}: no weights file (a state dict as .pth or .safetensors): {reason}; give another one"
        ) from error
    for wrapper in ("state_dict", "model"):  # what training scripts often save around the weights
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise CaptionerError(
            f"{path}: holds no state dict (names with tensors); save model.state_dict() and give that file"
        )
    if all(key.startswith("module.") for key in content):  # saved from DataParallel
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content


def _modern(name: str) -> str:
    """The name that today's torchvision has for a weight of its older DenseNet files (``norm.1`` is now ``norm1``)."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)
