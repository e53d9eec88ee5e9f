"""Changes to the files of a model, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from captioner.fingerprint import sha256_of_file


def replace_weights(folder: Path, tensors: dict[str, torch.Tensor] | bytes) -> None:
    """Write other weights into a model's folder, with their hash in its config."""
    path, config = folder / "model.safetensors", folder / "config.json"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        save_file(tensors, path)
    content = json.loads(config.read_text())
    content["sha256"]["model.safetensors"] = sha256_of_file(path)
    config.write_text(json.dumps(content))
