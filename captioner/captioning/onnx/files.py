"""An ONNX export: a folder of three graphs, and ``config.json`` with all else that captioning needs.

* ``encoder.onnx``: images (B, S, S, 3) uint8 -> features (B, P, C) float16.
* ``memory.onnx``: features (I, P, C) float16 -> the decoder's memory and its state before START, both of I images.
* ``decoder_step.onnx``: tokens (I, K) int64, memory, state -> logits (I, K, V), attention (I, K, P), the next state.

Memory and state are tensors of the decoder's own: memory (I, ...), state (I, K, ...) or a scalar that all share. The
graphs name them ``memory_0``, ``state_0`` and so on, and the next state ``next_0``.

``config.json`` has the SHA-256 of each graph and a fingerprint of its own other keys, so that a torn or damaged export
is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.fingerprint import fingerprint
from captioner.vocabulary.vocabulary import Vocabulary

ENCODER, MEMORY, STEP, CONFIG = "encoder.onnx", "memory.onnx", "decoder_step.onnx", "config.json"
GRAPHS = (ENCODER, MEMORY, STEP)
KIND, FORMAT_VERSION = "onnx export", 1
MAX_BYTES = (2 << 30) - 1
"""Of one graph with its weights: the limit of protobuf."""


@dataclass(frozen=True)
class SearchRules:
    """What beam search does beside ``--beam``, as in ``EvaluateParameters``."""

    max_length: int
    min_length: int
    length_normalisation: float


@dataclass(frozen=True)
class Export:
    """The content of an export.

    Attributes:
        config: content of ``config.json``.
        vocabulary: of the decoder.
        rules: of search.
        graphs: file name -> its bytes.
    """

    config: dict[str, Any]
    vocabulary: Vocabulary
    rules: SearchRules
    graphs: dict[str, bytes]


def is_export(folder: Path) -> bool:
    """Whether ``folder`` has the configuration of an export, of any version."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("kind") == KIND


def refuse_export(folder: Path) -> None:
    """Raise where a trained model is wanted and ``folder`` is an export.

    Raises:
        CaptionerError: it is.
    """
    if is_export(folder):
        raise CaptionerError(
            f"{folder}: an ONNX export, not a trained model; use --runtime onnx, or name the folder that it was "
            "exported from"
        )


def write_config(config: dict[str, Any], graphs: dict[str, bytes]) -> str:
    """The content of ``config.json``: ``config`` with kind, version, the graphs' hashes and the fingerprint."""
    hashes = {name: _sha256(graph) for name, graph in graphs.items()}
    config = {**config, "kind": KIND, "format_version": FORMAT_VERSION, "files": hashes}
    config["fingerprint"] = fingerprint(config)
    return json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_export(folder: Path) -> Export:
    """Read an export.

    Raises:
        CaptionerError: a file is missing or damaged, of another format version, or the folder is no export.
    """
    config = _read_config(folder)
    remedy = "copy the export's folder again, or export again"
    graphs = {}
    for name in GRAPHS:
        path = folder / name
        try:
            if path.stat().st_size > MAX_BYTES:
                raise CaptionerError(f"{path}: {path.stat().st_size:,} bytes, which no graph can have; {remedy}")
            graphs[name] = path.read_bytes()
        except OSError as error:
            raise CaptionerError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
        found, wanted = _sha256(graphs[name]), config["files"].get(name)
        if found != wanted:
            raise CaptionerError(
                f"{path}: its SHA-256 is {found[:12]}, not {str(wanted)[:12]} as {CONFIG} says: damaged, or of another "
                f"export; {remedy}"
            )
    source = str(folder / CONFIG)
    try:
        rules = SearchRules(**config["search"])
        if not (0 <= rules.min_length <= rules.max_length <= 1000 and 0 <= rules.length_normalisation <= 5):
            raise ValueError(f"search={config['search']}")
        if not (len(config["grid"]) == 2 and all(type(side) is int and side > 0 for side in config["grid"])):
            raise ValueError(f"grid={config['grid']}")
    except (TypeError, ValueError) as error:
        raise CaptionerError(f"{source}: damaged ({error}); {remedy}") from error
    return Export(config, Vocabulary.from_json(config["vocabulary"], source), rules, graphs)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaptionerError(
            f"{path}: cannot be read ({error.strerror}); make an export (captioner export DIR --onnx), or name a "
            "folder that is one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{path}: no valid JSON ({error}); copy the export's folder again") from error
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise CaptionerError(
            f"{folder}: not an ONNX export; make one of a trained model (captioner export DIR --onnx --model {folder})"
            " and name that, or use --runtime torch"
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise CaptionerError(
            f"{path}: export format {config.get('format_version')!r}, this program reads format {FORMAT_VERSION}; "
            "export again"
        )
    stated = config.pop("fingerprint", None)
    if stated != fingerprint(config):
        raise CaptionerError(
            f"{path}: its content is not what its fingerprint says: damaged or edited; copy the export's folder "
            "again, or export again"
        )
    return config


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
