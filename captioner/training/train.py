"""The stage ``train``: features, captions and word vectors into a trained decoder."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch

from captioner.decoder import CaptionDecoder, DecoderConfig, build_decoder
from captioner.device import prepare_device
from captioner.errors import CaptionerError
from captioner.interrupts import StopSignal
from captioner.parameters import Parameters
from captioner.sidecar import Sidecar
from captioner.training.batches import BatchLoader
from captioner.training.encoder_file import save_encoder
from captioner.training.history import write_history, write_timing
from captioner.training.inputs import Inputs, load_inputs
from captioner.training.loop import Setting, Trainer
from captioner.training.model_files import ENCODER, save_model
from captioner.training.phases import build_phases
from captioner.training.validation import Validator

VERSION = 1  # raised when training gives another result for the same parameters, so that unfinished work is not mixed


def train(parameters: Parameters, features: Path, captions: Path, vocab: Path, embeddings: Path, models: Path, results: Path) -> None:
    """Train a decoder, or go on with a run that was stopped; a killed run ends with the same bytes as an uninterrupted one.

    Args:
        parameters: all of them; ``train``, ``decoder``, ``attention``, ``seed`` decide the result.
        features, captions, vocab, embeddings: inputs.
        models: folder to make, with ``model.safetensors`` and ``config.json``; unfinished work is in ``<models>.partial``;
            a file ``STOP`` made there ends training after the step at work, with the best model so far.
        results: folder for ``history.csv``, ``metrics.json`` and ``timing.json``.

    Raises:
        CaptionerError: inputs that are damaged or do not belong together, a loss that is not finite, a full disk.
        Interrupted: a signal came; the same call goes on from there.
    """
    device = prepare_device(parameters.runtime.device, parameters.runtime.threads)
    inputs = load_inputs(parameters, Path(features), Path(captions), Path(vocab), Path(embeddings))
    facts = _facts(parameters, inputs)
    random_devices = [device] if device.type == "cuda" else []
    with Sidecar(models, facts) as sidecar, StopSignal("train") as stop, torch.random.fork_rng(random_devices):
        torch.manual_seed(parameters.seed)
        decoder = build_decoder(_config(parameters, inputs), torch.from_numpy(inputs.embeddings)).to(device)
        with inputs.store.reader(parameters.runtime.features_on, device) as reader:
            setting = Setting(
                BatchLoader(inputs.train, inputs.train_rows, reader), Validator(inputs, reader, device), parameters.seed,
                inputs.store.views, sidecar.folder, device, parameters.runtime.checkpoint_seconds,
            )  # fmt: skip
            phases = build_phases(parameters.train, inputs.train, inputs.max_length)
            trainer = Trainer(decoder, parameters.train, phases, setting)
            save_encoder(sidecar.folder, inputs.store, parameters.extract)  # before the work, so that other weights are refused at once
            trainer.restore()
            trainer.run(stop)
        try:
            _publish(sidecar, decoder, parameters, inputs, trainer, Path(models), Path(results))
        except OSError as error:
            raise CaptionerError(
                f"{models}: cannot be written ({error.strerror}); free the disk and run again, the training is not done again"
            ) from error


def _publish(
    sidecar: Sidecar, decoder: CaptionDecoder, parameters: Parameters, inputs: Inputs, trainer: Trainer, models: Path, results: Path
) -> None:
    draft = sidecar.path("models")
    shutil.rmtree(draft, ignore_errors=True)
    store = inputs.store
    save_model(draft, decoder, inputs.vocabulary, {
        "dataset": parameters.dataset, "encoder": store.encoder, "layer": store.layer, "weights_name": store.weights_name,
        "weights_sha256": store.weights_sha256, "preprocessing": store.preprocessing, "grid": list(store.grid),
        "features_fingerprint": store.fingerprint, "max_length": inputs.max_length,
        "fingerprint": sidecar.fingerprint,
    })  # fmt: skip
    if sidecar.path(ENCODER).exists():
        shutil.copyfile(sidecar.path(ENCODER), draft / ENCODER)
    trained = sum(parameter.numel() for parameter in decoder.parameters() if parameter.requires_grad)
    write_history(results, trainer.at.history, trainer.at.best_epoch, trainer.at.stopped, trained)
    write_timing(results, trainer.at.seconds, len(inputs.train))
    sidecar.publish("models", models)
    sidecar.finish()


def _facts(parameters: Parameters, inputs: Inputs) -> dict[str, Any]:
    """Everything that decides the result."""
    return {
        "version": VERSION,
        "dataset": parameters.dataset,
        "features": inputs.store.fingerprint,
        "captions": inputs.captions.fingerprint,
        "vocabulary": inputs.vocabulary.fingerprint,
        "embeddings": hashlib.sha256(inputs.embeddings.tobytes()).hexdigest(),
        "decoder": parameters.decoder,
        "attention": parameters.attention,
        "seed": parameters.seed,
        "train": dataclasses.asdict(parameters.train),
    }


def _config(parameters: Parameters, inputs: Inputs) -> DecoderConfig:
    options = parameters.train
    _, _, positions, channels = inputs.store.shape
    return DecoderConfig(
        decoder=parameters.decoder, attention=parameters.attention, vocabulary_size=len(inputs.vocabulary),
        embedding_size=inputs.embeddings.shape[1],
        channels=channels, positions=positions, feature_size=options.feature_size, hidden_size=options.hidden_size,
        attention_size=options.attention_size, heads=options.heads, position=options.position,
        dropout=options.dropout, tune_embeddings=options.tune_embeddings, rows=inputs.store.grid[0],
    )  # fmt: skip
