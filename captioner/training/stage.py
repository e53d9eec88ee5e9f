"""The stage ``train``: features, captions and word vectors into a trained decoder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from captioner.batches import BatchLoader
from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.device import prepare_device
from captioner.errors import CaptionerError
from captioner.fingerprint import canonical_json
from captioner.interrupts import StopSignal
from captioner.launch import Rank
from captioner.model_io import ENCODER, save_encoder, save_model
from captioner.parameters import DownloadParameters, EvaluateParameters, Parameters
from captioner.sidecar import Sidecar
from captioner.training.checkpoint import TrainState
from captioner.training.data_warnings import warn_about_data
from captioner.training.distributed import Group, process_group, rank_seed
from captioner.training.initial import Initial, load_initial
from captioner.training.inputs import Inputs, load_inputs
from captioner.training.logs import EpochLog, write_metrics, write_timing
from captioner.training.phases import build_phases
from captioner.training.train import TrainContext, fit
from captioner.training.validation import Validator, scores_wanted

VERSION = 2  # raised when training gives another result for the same parameters, so that unfinished work is not mixed


def train(
    parameters: Parameters, features: Path, captions: Path, vocab: Path, embeddings: Path, models: Path, results: Path
) -> None:
    """Train a decoder, or go on with a run that was stopped; a killed run ends with the same bytes as an uninterrupted
    one.

    Under torchrun, or ``captioner.launch``, every rank calls it and works on its shard of each batch; rank 0 writes.

    Args:
        parameters: all of them; ``train``, ``decoder``, ``attention``, ``seed`` decide the result.
        features, captions, vocab, embeddings: inputs.
        models: folder to make, with ``model.safetensors`` and ``config.json``; unfinished work is in
            ``<models>.partial``; a file ``STOP`` made there ends training after the current step, with the best model
            so far.
        results: folder for ``plots/metrics/`` (the curves), ``metrics.json``, ``timing.json`` and ``tensorboard/``.

    Raises:
        CaptionerError: inputs that are damaged or do not belong together, a loss that is not finite, a full disk.
        Interrupted: a signal came; the same call goes on from there.
    """
    rank = Rank.from_environment()
    device = prepare_device(parameters.runtime.device, parameters.runtime.threads, rank)
    models, results = Path(models), Path(results)
    inputs, initial = read_inputs(parameters, features, captions, vocab, embeddings, models)
    facts = _facts(parameters, inputs, initial)
    sidecar = Sidecar(models, facts)
    with (
        sidecar if rank.is_main else nullcontext(),
        StopSignal("train", quiet=not rank.is_main) as stop,
        process_group(rank, device) as group,
    ):
        _check_same(facts, group)
        if rank.is_main:
            warn_about_data(inputs)
            # before the work, so that other weights are refused at once
            save_encoder(sidecar.folder, inputs.store, parameters.extract)
        decoder, state = _run(parameters, inputs, initial, group, sidecar.folder, results, stop)
        if not rank.is_main:
            return
        try:
            _publish(sidecar, decoder, parameters, inputs, state, models, results)
        except OSError as error:
            raise CaptionerError(
                f"{models}: cannot be written ({error.strerror}); free the disk and run again, the training is not "
                "done again"
            ) from error


def read_inputs(
    parameters: Parameters, features: Path, captions: Path, vocab: Path, embeddings: Path, models: Path
) -> tuple[Inputs, Initial | None]:
    """Read and check everything that ``train`` reads; see there."""
    _check_apart(parameters.train.init_from, Path(models))
    inputs = load_inputs(parameters, Path(features), Path(captions), Path(vocab), Path(embeddings))
    return inputs, load_initial(parameters.train.init_from, _config(parameters, inputs), inputs)


def _run(
    parameters: Parameters,
    inputs: Inputs,
    initial: Initial | None,
    group: Group,
    folder: Path,
    results: Path,
    stop: StopSignal,
) -> tuple[Decoder, TrainState]:
    """The training itself, the same on all ranks."""
    with torch.random.fork_rng([group.device] if group.device.type == "cuda" else []):
        torch.manual_seed(parameters.seed)
        decoder = build_decoder(_config(parameters, inputs), torch.from_numpy(inputs.embeddings)).to(group.device)
        if initial:
            decoder.load_state_dict(initial.weights)
        if group.rank:  # dropout differs from rank to rank
            torch.manual_seed(rank_seed(parameters.seed, group.rank, 1, 0))
        with inputs.store.reader(parameters.runtime.features_on, group.device) as reader:
            context = TrainContext(
                BatchLoader(inputs.train, inputs.train_rows, reader),
                Validator(inputs, reader, group, scores_wanted(parameters.train)),
                group,
                parameters.seed,
                inputs.store.views,
                folder,
                parameters.runtime.checkpoint_seconds,
                initialized=initial is not None,
            )
            phases = build_phases(parameters.train, inputs.train, inputs.max_length, decoder)
            with EpochLog(results, parameters.train.tensorboard) if group.is_main else nullcontext() as log:
                state = fit(decoder, parameters.train, phases, dataclasses.replace(context, log=log), stop)
    return decoder, state


def _check_apart(init_from: str | None, models: Path) -> None:
    if init_from is not None and Path(init_from).resolve() == models.resolve():
        raise CaptionerError(
            f"train.init_from={init_from}: this run's own model goes there, and DVC deletes the one before; copy the "
            "folder elsewhere and name the copy"
        )


def _check_same(facts: dict[str, Any], group: Group) -> None:
    """Raise CaptionerError where this rank would compute something else than rank 0."""
    main = json.loads(group.broadcast(canonical_json(facts)))
    own = json.loads(canonical_json(facts))
    different = [name for name in own if own[name] != main.get(name)]
    if different:
        raise CaptionerError(
            f"other {', '.join(different)} than rank 0 has; give all machines the same files and parameters"
        )


def _publish(
    sidecar: Sidecar,
    decoder: Decoder,
    parameters: Parameters,
    inputs: Inputs,
    state: TrainState,
    models: Path,
    results: Path,
) -> None:
    draft = sidecar.path("models")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    if sidecar.path(ENCODER).exists():
        shutil.copyfile(sidecar.path(ENCODER), draft / ENCODER)
    store = inputs.store
    save_model(
        draft,
        decoder,
        inputs.vocabulary,
        {
            "dataset": parameters.dataset,
            "encoder": store.encoder,
            "layer": store.layer,
            "weights_name": store.weights_name,
            "weights_sha256": store.weights_sha256,
            "weights_seed": store.weights_seed,
            "precision": store.facts["precision"],
            "images": {  # features files of older versions do not say it
                "image_size": store.image_size or DownloadParameters.image_size,
                "jpeg_quality": store.jpeg_quality or DownloadParameters.jpeg_quality,
            },
            "preprocessing": store.preprocessing,
            "grid": list(store.grid),
            "features_fingerprint": store.fingerprint,
            "max_length": inputs.max_length,
            "training": {"seed": parameters.seed} | _options(parameters),
            "fingerprint": sidecar.fingerprint,
            **({} if store.weights_license is None else {"weights_license": store.weights_license}),
        },
    )
    trained = sum(parameter.numel() for parameter in decoder.parameters() if parameter.requires_grad)
    write_metrics(results, state.history, state.best_epoch, state.stopped, trained)
    write_timing(results, state.seconds, len(inputs.train))
    sidecar.publish("models", models)
    sidecar.finish()


def _facts(parameters: Parameters, inputs: Inputs, initial: Initial | None) -> dict[str, Any]:
    """Inputs of the run's fingerprint."""
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
        "train": _options(parameters),
        "init_from": initial and initial.sha256,
    }


def _options(parameters: Parameters) -> dict[str, Any]:
    """``train.*`` without paths and what cannot change the model."""
    options = dataclasses.asdict(parameters.train)
    del options["init_from"], options["tensorboard"]
    return options


def _config(parameters: Parameters, inputs: Inputs) -> DecoderConfig:
    options = parameters.train
    _, _, positions, channels = inputs.store.shape
    vector_size = inputs.embeddings.shape[1]
    return DecoderConfig(
        decoder=parameters.decoder,
        attention=parameters.attention,
        vocabulary_size=len(inputs.vocabulary),
        embedding_size=options.embedding_size or vector_size,
        vector_size=vector_size,
        layers=options.layers,
        tie_weights=options.tie_weights,
        norm=options.norm,
        channels=channels,
        positions=positions,
        feature_size=options.feature_size,
        hidden_size=options.hidden_size,
        attention_size=options.attention_size,
        heads=options.heads,
        position=options.position,
        dropout=options.dropout,
        tune_embeddings=options.tune_embeddings,
        rows=inputs.store.grid[0],
        word_position=options.word_position,
        # captions may be as long as the stage ``evaluate`` and ``captioner caption`` let them by default
        max_length=max(inputs.max_length, EvaluateParameters.max_length),
    )
