"""A trained model as an ONNX export, for captioning without torch; ``captioner.captioning.onnx`` reads it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import captioner
from captioner.captioning.encoder import load_encoder
from captioner.captioning.onnx.files import (
    CONFIG,
    ENCODER,
    GRAPHS,
    MEMORY,
    STEP,
    is_export,
    refuse_export,
    write_config,
)
from captioner.captioning.recipe import read_recipe
from captioner.errors import CaptionerError
from captioner.export.graphs import decoder_graphs, encoder_graph
from captioner.export.int8 import store_in_int8
from captioner.fingerprint import sha256_of_file
from captioner.model_io import CONFIG as MODEL_CONFIG
from captioner.model_io import WEIGHTS, Model, load_model
from captioner.parameters import EvaluateParameters
from captioner.sidecar import Sidecar, write_atomically

_COPIED = ("dataset", "encoder", "layer", "weights_name", "weights_sha256", "images", "preprocessing", "grid")
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_FOLDER = "export"


def export_onnx(model: Path, out: Path, int8: bool = False) -> list[Path]:
    """Write the export ``out`` of the trained model in the folder ``model``.

    The encoder is exported in fp32, whatever precision its features were extracted in.

    Args:
        int8: the decoder step's matrices are stored as 8-bit integers; see ``int8``. The encoder stays fp32.

    Returns:
        The files.

    Raises:
        CaptionerError: no model there; ``out`` is in the way; a package of the extra ``onnx`` is missing; or an encoder
            or decoder cannot be exported.
    """
    _check_target(out)
    refuse_export(model)
    loaded = load_model(model)
    read_recipe(model / MODEL_CONFIG, loaded.config)
    facts = {
        "model": sha256_of_file(model / MODEL_CONFIG),
        "weights": sha256_of_file(model / WEIGHTS),
        "int8": int8,
        "versions": {"captioner": captioner.__version__, **_versions()},
    }
    with Sidecar(out, facts) as sidecar:
        folder = sidecar.path(_FOLDER)
        _write(model, loaded, folder, int8)
        sidecar.publish(_FOLDER, out)
        sidecar.finish()
    return [out / name for name in (*GRAPHS, CONFIG)]


def _check_target(out: Path) -> None:
    if out.is_dir() and not is_export(out) and any(out.iterdir()):
        raise CaptionerError(f"{out}: a folder with other files; name a new folder, or an ONNX export to replace")
    if not out.is_dir() and (out.exists() or out.is_symlink()):
        raise CaptionerError(f"{out}: a file; name a new folder")


def _versions() -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in _PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise CaptionerError(
            f"{error.name}: not installed, and an export to ONNX needs it; in the program's folder: "
            "pip install '.[onnx]'"
        ) from error


def _write(folder: Path, model: Model, out: Path, int8: bool) -> None:
    """All files into ``out``. A graph that an interrupted run has finished stands there already."""

    def made(name: str, make: Callable[[], bytes]) -> bytes:
        path = out / name
        if not path.exists():
            write_atomically(path, make())
        return path.read_bytes()

    def encoder() -> bytes:
        fp32 = replace(model, config={**model.config, "precision": "fp32"})
        return encoder_graph(load_encoder(folder, fp32, torch.device("cpu")))

    def decoder() -> bytes:
        config = model.decoder.config
        graphs = decoder_graphs(model.decoder, config.channels, config.positions)
        write_atomically(out / MEMORY, graphs[MEMORY])
        return store_in_int8(graphs[STEP]) if int8 else graphs[STEP]

    graphs = {ENCODER: made(ENCODER, encoder), STEP: made(STEP, decoder), MEMORY: (out / MEMORY).read_bytes()}
    rules, longest = EvaluateParameters(), model.decoder.longest
    config = {
        **{name: model.config[name] for name in _COPIED},
        "decoder": model.decoder.config.decoder,
        "attention": model.decoder.config.attention,
        "int8": int8,
        "model_fingerprint": model.config["fingerprint"],
        "search": {
            "max_length": min(rules.max_length, longest or rules.max_length),
            "min_length": rules.min_length,
            "length_normalisation": rules.length_normalisation,
        },
        "versions": _versions(),
        "vocabulary": model.vocabulary.to_json(),
    }
    write_atomically(out / CONFIG, write_config(config, graphs))
