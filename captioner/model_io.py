"""Save and load a trained model, ``models/``: weights as safetensors, everything else as JSON. No pickles, no paths.

* ``model.safetensors``: weights of the caption decoder.
* ``config.json``: decoder settings, vocabulary, encoder, preprocessing, training settings, fingerprint, and the
  SHA-256 of the other files.
* ``encoder.safetensors``: weights of the encoder, where they came from a file of the user.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.fingerprint import fingerprint, sha256_of_file
from captioner.parameters import ExtractParameters
from captioner.sidecar import write_atomically
from captioner.vocabulary.vocabulary import Vocabulary

FORMAT_VERSION = 3  # 2: with the encoder's preprocessing; 3: with the training settings
WEIGHTS, CONFIG, ENCODER = "model.safetensors", "config.json", "encoder.safetensors"
KEYS = frozenset(
    (
        "format_version",
        "dataset",
        "encoder",
        "layer",
        "weights_name",
        "weights_sha256",
        "weights_seed",
        "precision",
        "images",
        "preprocessing",
        "grid",
        "features_fingerprint",
        "vocabulary",
        "max_length",
        "decoder",
        "training",
        "fingerprint",
    )
)
OPTIONAL_KEYS = frozenset(
    (
        "weights_license",  # of the encoder's weights, where their publisher states it
        "sha256",  # file name -> SHA-256 (hex) of its bytes; models of older versions do not have it
    )
)


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        decoder: in eval mode, on the CPU.
        vocabulary: of the decoder.
        config: content of ``config.json``; its keys are ``KEYS`` and some of ``OPTIONAL_KEYS``.
    """

    decoder: Decoder
    vocabulary: Vocabulary
    config: dict[str, Any]


def save_model(
    folder: Path, decoder: Decoder, vocabulary: Vocabulary, facts: dict[str, Any], half: bool = False
) -> None:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``.

    The config has the SHA-256 of the weights, and of ``encoder.safetensors`` if that is in the folder already.

    Args:
        facts: the other keys of ``KEYS``. ``training``, the settings of training, may be left out.
        half: store weights as float16.

    Raises:
        CaptionerError: a weight is too large for float16.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    if half:
        weights = _half(weights, f"{folder / WEIGHTS}: a weight is too large for half precision; use full precision")
    write_atomically(folder / WEIGHTS, save(weights))
    config = {
        "training": {},
        **facts,
        "format_version": FORMAT_VERSION,
        "vocabulary": vocabulary.to_json(),
        "decoder": decoder.config.to_json(),
        "sha256": {name: sha256_of_file(folder / name) for name in (WEIGHTS, ENCODER) if (folder / name).exists()},
    }
    if set(config) - OPTIONAL_KEYS != KEYS:
        raise ValueError(
            f"unexpected or missing keys in the facts of a model: {sorted((set(config) - OPTIONAL_KEYS) ^ KEYS)}"
        )
    write_atomically(
        folder / CONFIG, json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )


def save_encoder(folder: Path, store: FeatureStore, extract: ExtractParameters) -> None:
    """Write the encoder's state dict to ``encoder.safetensors`` in fp16, if its weights came from a file of the user.

    Bundled, published and packaged weights are available everywhere; random ones are drawn again from their seed.

    Raises:
        CaptionerError: the weights that ``extract.weights`` names are no longer those that the features were made with.
    """
    if store.weights_name != "file":
        return
    from captioner.features.encoders import build_encoder

    encoder = build_encoder(
        store.encoder, extract.weights, extract.seed, image_size=extract.image_size, layer=extract.layer
    )
    if encoder.weights_sha256 != store.weights_sha256:
        raise CaptionerError(
            f"extract.weights={extract.weights}: these weights ({encoder.weights_sha256[:12]}) are not those that made "
            f"{store.path} ({store.weights_sha256[:12]}); give the same ones, or run the extract stage again"
        )
    half = _half(
        dict(sorted(encoder.body.state_dict().items())),
        f"extract.weights={extract.weights}: a weight is too large for half precision; "
        "train this encoder's weights again with weight decay",
    )
    write_atomically(folder / ENCODER, save(half))


def _half(state: dict[str, torch.Tensor], message: str) -> dict[str, torch.Tensor]:
    """A state dict in float16; raises CaptionerError(message) where a value is too large for that."""
    half = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in state.items()
    }
    if not all(torch.isfinite(tensor).all() for tensor in half.values() if tensor.is_floating_point()):
        raise CaptionerError(message)
    return half


def load_model(folder: str | Path) -> Model:
    """Read a trained model.

    Raises:
        CaptionerError: a file is missing, damaged or of another format version, has unknown keys, or vocabulary,
            settings and weights do not match.
    """
    path, config = Path(folder) / CONFIG, read_config(folder)
    vocabulary = Vocabulary.from_json(config["vocabulary"], str(path))
    settings = DecoderConfig.from_json(config["decoder"], str(path))
    _check(path, settings, vocabulary, config)
    check_sha256(Path(folder) / WEIGHTS, config)
    return Model(_load_decoder(Path(folder) / WEIGHTS, settings), vocabulary, config)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The content of ``config.json``: all of ``KEYS``, some of ``OPTIONAL_KEYS``.

    Raises:
        CaptionerError: the file is missing, damaged, of another format version or has other keys.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaptionerError(
            f"{path}: cannot be read ({error.strerror}); train a model first, or name a folder that has one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{path}: no valid JSON ({error}); copy the model's folder again") from error
    if not isinstance(config, dict):
        raise CaptionerError(f"{path}: the top level is no mapping; copy the model's folder again")
    if config.get("format_version") != FORMAT_VERSION:
        raise CaptionerError(
            f"{path}: model format {config.get('format_version')!r}, this program reads format {FORMAT_VERSION}; "
            "train again: dvc repro"
        )
    for key in sorted(KEYS ^ (set(config) - OPTIONAL_KEYS)):
        state = "missing" if key in KEYS else "unknown"
        raise CaptionerError(f"{path}: the key {key!r} is {state}; train again or copy the model's folder again")
    if not isinstance(config["training"], dict):
        raise CaptionerError(f"{path}: training={config['training']!r} is no mapping; copy the model's folder again")
    if not isinstance(config.get("sha256", {}), dict):
        raise CaptionerError(f"{path}: sha256={config['sha256']!r} is no mapping; copy the model's folder again")
    return config


def check_sha256(path: Path, config: dict[str, Any]) -> None:
    """Raise if a file of a model's folder has other bytes than when it was written.

    A file whose hash the config does not have passes, and so does a missing one: reading it is the error.

    Raises:
        CaptionerError: the hashes differ, or the file cannot be read. The message has both hashes.
    """
    wanted = config.get("sha256", {}).get(path.name)
    if wanted is None or not path.exists():
        return
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read ({error.strerror}); copy the model's folder again") from error
    if found != wanted:
        raise CaptionerError(
            f"{path}: damaged or of another model, its SHA-256 is {found[:12]} and not {str(wanted)[:12]} as in "
            f"{CONFIG}; copy the model's folder again"
        )


def _check(path: Path, settings: DecoderConfig, vocabulary: Vocabulary, config: dict[str, Any]) -> None:
    if settings.vocabulary_size != len(vocabulary):
        raise CaptionerError(
            f"{path}: the vocabulary has {len(vocabulary)} words but the decoder was trained with "
            f"{settings.vocabulary_size}; copy the model's folder again"
        )
    grid = config["grid"]
    if not (
        isinstance(grid, list)
        and len(grid) == 2
        and all(isinstance(side, int) for side in grid)
        and math.prod(grid) == settings.positions
        and grid[0] == settings.rows
    ):
        raise CaptionerError(
            f"{path}: grid={grid!r} does not have the decoder's {settings.positions} positions in {settings.rows} "
            "rows; copy the model's folder again"
        )


def _load_decoder(path: Path, settings: DecoderConfig) -> Decoder:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CaptionerError(f"{path}: no readable weights ({error}); copy the model's folder again") from error
    try:
        with torch.device("meta"):  # allocates nothing, in case the settings do not match the weights
            decoder = build_decoder(settings)
    except CaptionerError as error:
        raise CaptionerError(f"{path.with_name(CONFIG)}: {error.message}") from error
    except (RuntimeError, OverflowError) as error:  # sizes beyond any tensor
        raise CaptionerError(
            f"{path.with_name(CONFIG)}: the decoder's settings describe no possible model; "
            "copy the model's folder again"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise CaptionerError(
                f"{path}: the tensor {name} is {found.get(name, 'missing')}, but {CONFIG} (vocabulary of "
                f"{settings.vocabulary_size} words) needs {expected.get(name, 'none')}; "
                "these two files are not of one model, copy its folder again"
            )
    # float16 weights are computed with in float32
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    decoder.load_state_dict(weights, assign=True)
    return decoder.requires_grad_(False).eval()


def check_features(model: Model, store: FeatureStore, folder: str | Path, remedy: str) -> None:
    """Raise unless the features are of the same kind as those that the model was trained on.

    Args:
        folder: of the model, for the message.
        remedy: what can be done other than extracting features again, for the message.

    Raises:
        CaptionerError: encoder, weights, preprocessing or grid differ. The message has both fingerprints.
    """
    found, wanted = _features_of_store(store), _features_of_model(model)
    different = [name for name in wanted if wanted[name] != found[name]]
    if different:
        differences = "; ".join(f"{name} is {_short(found[name])}, not {_short(wanted[name])}" for name in different)
        raise CaptionerError(
            f"{store.path}: these features (fingerprint {fingerprint(found)[:12]}) are not of the kind that the model "
            f"in {folder} was trained on (fingerprint {fingerprint(wanted)[:12]}): {differences}; "
            f"extract features with the model's settings, {remedy}"
        )


def check_words(where: str, theirs: Vocabulary, ours: Vocabulary, remedy: str) -> None:
    """Raise unless both vocabularies have the same tokenizer and the same words in the same order.

    Args:
        where: parameter and folder of the model with ``theirs``, for the message.

    Raises:
        CaptionerError: they differ. The message has both tokenizers, the first different word, or both sizes.
    """
    their_name, our_name = theirs.tokenizer.name, ours.tokenizer.name
    if their_name != our_name:
        raise CaptionerError(f"{where}: its tokenizer is {their_name}, that of this vocabulary {our_name}; {remedy}")
    for row, (their, our) in enumerate(zip(theirs.words, ours.words)):
        if their != our:
            raise CaptionerError(f"{where}: its word {row} is {their!r}, that of this vocabulary {our!r}; {remedy}")
    if len(theirs) != len(ours):
        raise CaptionerError(f"{where}: its vocabulary has {len(theirs)} words, this one {len(ours)}; {remedy}")


def _features_of_store(store: FeatureStore) -> dict[str, Any]:
    return {
        "encoder": store.encoder,
        "layer": store.layer,
        "weights_sha256": store.weights_sha256,
        "preprocessing": store.preprocessing,
        "grid": list(store.grid),
        "channels": store.shape[3],
    }


def _features_of_model(model: Model) -> dict[str, Any]:
    kept = {name: model.config[name] for name in ("encoder", "layer", "weights_sha256", "preprocessing", "grid")}
    return {**kept, "channels": model.decoder.config.channels}


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
