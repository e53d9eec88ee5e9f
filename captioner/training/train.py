"""The stage ``train``: features, captions and word vectors into a trained decoder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from captioner.decoder import CaptionDecoder, DecoderConfig, build_decoder
from captioner.decoder.norm import BatchNorm
from captioner.device import prepare_device
from captioner.errors import CaptionerError
from captioner.fingerprint import canonical_json
from captioner.interrupts import StopSignal
from captioner.model_io import ENCODER, save_encoder, save_model
from captioner.parameters import Parameters, parameters_content, parse_parameters
from captioner.processes import Rank, Store, Torchrun, local_world
from captioner.sidecar import Sidecar
from captioner.training.batches import BatchLoader
from captioner.training.history import write_history, write_timing
from captioner.training.initial import Initial, load_initial
from captioner.training.inputs import Inputs, load_inputs
from captioner.training.loop import Setting, Trainer
from captioner.training.parallel import Group, following, leading, process_seed
from captioner.training.phases import build_phases
from captioner.training.state import trained_weights
from captioner.training.validation import Validator

VERSION = 1  # raised when training gives another result for the same parameters, so that unfinished work is not mixed


def train(
    parameters: Parameters, features: Path, captions: Path, vocab: Path, embeddings: Path, models: Path, results: Path
) -> None:
    """Train a decoder, or go on with a run that was stopped; a killed run ends with the same bytes as an uninterrupted
    one.

    Several processes share each step, where torchrun started them or ``runtime`` asks for them; rank 0 alone writes.

    Args:
        parameters: all of them; ``train``, ``decoder``, ``attention``, ``seed`` decide the result.
        features, captions, vocab, embeddings: inputs.
        models: folder to make, with ``model.safetensors`` and ``config.json``; unfinished work is in
            ``<models>.partial``; a file ``STOP`` made there ends training after the step at work, with the best model
            so far.
        results: folder for ``history.csv``, ``metrics.json`` and ``timing.json``.

    Raises:
        CaptionerError: inputs that are damaged or do not belong together, a loss that is not finite, a full disk.
        Interrupted: a signal came; the same call goes on from there.
    """
    files = {
        name: Path(path)
        for name, path in {"features": features, "captions": captions, "vocab": vocab, "embeddings": embeddings}.items()
    }
    torchrun, local = Torchrun.from_environment("train"), local_world(parameters.runtime)
    rank, store = (torchrun.rank, torchrun.store) if torchrun else (Rank(world=local, local_world=local), None)
    if rank.rank:
        _follow(parameters, files, rank, store)
        return
    device = prepare_device(parameters.runtime.device, parameters.runtime.threads, rank)
    _check_apart(parameters.train.init_from, Path(models))
    inputs = load_inputs(parameters, **files)
    initial = load_initial(parameters.train.init_from, _config(parameters, inputs), inputs)
    with Sidecar(models, _facts(parameters, inputs, initial)) as sidecar, StopSignal("train") as stop:
        save_encoder(
            sidecar.folder, inputs.store, parameters.extract
        )  # before the work, so that other weights are refused at once
        task = {
            "parameters": parameters_content(parameters),
            "files": {name: str(path.absolute()) for name, path in files.items()},
        }
        with leading(rank, device, store, task, stop) as group:
            trainer = _run(parameters, inputs, initial, group, sidecar.folder, stop)
        try:
            _publish(sidecar, trainer.decoder, parameters, inputs, trainer, Path(models), Path(results))
        except OSError as error:
            raise CaptionerError(
                f"{models}: cannot be written ({error.strerror}); free the disk and run again, the training is not done again"
            ) from error


def join(rank: Rank, task: dict[str, Any]) -> None:
    """A process that rank 0 started on the same machine; ``task`` is what ``train`` gave it."""
    files = {name: Path(path) for name, path in task["files"].items()}
    _follow(parse_parameters(task["parameters"]), files, rank, Store.local(task["port"]))


def _follow(parameters: Parameters, files: dict[str, Path], rank: Rank, store: Store) -> None:
    """Any rank but 0: train with it, write nothing."""
    with StopSignal("train", quiet=True) as stop, following(rank, store, stop) as enter:
        device = prepare_device(parameters.runtime.device, parameters.runtime.threads, rank)
        inputs = load_inputs(parameters, **files)
        initial = load_initial(parameters.train.init_from, _config(parameters, inputs), inputs)
        with enter(device) as group:
            _run(parameters, inputs, initial, group, None, stop)


def _run(
    parameters: Parameters, inputs: Inputs, initial: Initial | None, group: Group, folder: Path | None, stop: StopSignal
) -> Trainer:
    """The training itself, the same in all processes; ``folder`` is for the states, rank 0's alone."""
    _check_inputs(_facts(parameters, inputs, initial), group)
    with torch.random.fork_rng([group.device] if group.device.type == "cuda" else []):
        torch.manual_seed(parameters.seed)
        decoder = build_decoder(_config(parameters, inputs), torch.from_numpy(inputs.embeddings)).to(group.device)
        if initial:
            decoder.load_state_dict(initial.weights)
        for weight in trained_weights(decoder).values():
            group.broadcast_(weight.data)  # another processor may draw other last bits
        if isinstance(decoder.norm, BatchNorm):
            decoder.norm.all_reduce = group.all_reduce_
        if group.rank:
            torch.manual_seed(
                process_seed(parameters.seed, group.rank, 1, 0)
            )  # dropout differs from process to process
        with inputs.store.reader(parameters.runtime.features_on, group.device) as reader:
            setting = Setting(
                BatchLoader(inputs.train, inputs.train_rows, reader),
                Validator(inputs, reader, group),
                parameters.seed,
                inputs.store.views,
                folder,
                group,
                parameters.runtime.checkpoint_seconds,
                loaded=initial is not None,
            )
            phases = build_phases(parameters.train, inputs.train, inputs.max_length, decoder)
            trainer = Trainer(decoder, parameters.train, phases, setting)
            trainer.restore()
            trainer.run(stop)
    return trainer


def _check_apart(init_from: str | None, models: Path) -> None:
    if init_from is not None and Path(init_from).resolve() == models.resolve():
        raise CaptionerError(
            f"train.init_from={init_from}: this run's own model goes there, and DVC deletes the one before; copy the folder elsewhere "
            "and name the copy"
        )


def _check_inputs(facts: dict[str, Any], group: Group) -> None:
    """Raise CaptionerError where this process would compute something else than rank 0."""
    leaders = json.loads(group.broadcast_bytes(canonical_json(facts).encode()))
    own = json.loads(canonical_json(facts))
    different = [name for name in own if own[name] != leaders.get(name)]
    if different:
        raise CaptionerError(
            f"other {', '.join(different)} than process 0 has; give all machines the same files and parameters"
        )


def _publish(
    sidecar: Sidecar,
    decoder: CaptionDecoder,
    parameters: Parameters,
    inputs: Inputs,
    trainer: Trainer,
    models: Path,
    results: Path,
) -> None:
    draft = sidecar.path("models")
    shutil.rmtree(draft, ignore_errors=True)
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
            "weights_seed": parameters.extract.seed,
            "precision": store.facts["precision"],
            "pictures": {
                "image_size": parameters.download.image_size,
                "jpeg_quality": parameters.download.jpeg_quality,
            },
            "preprocessing": store.preprocessing,
            "grid": list(store.grid),
            "features_fingerprint": store.fingerprint,
            "max_length": inputs.max_length,
            "training": {"seed": parameters.seed} | _facts(parameters, inputs, None)["train"],
            "fingerprint": sidecar.fingerprint,
        },
    )
    if sidecar.path(ENCODER).exists():
        shutil.copyfile(sidecar.path(ENCODER), draft / ENCODER)
    trained = sum(parameter.numel() for parameter in decoder.parameters() if parameter.requires_grad)
    write_history(results, trainer.at.history, trainer.at.best_epoch, trainer.at.stopped, trained)
    write_timing(results, trainer.at.seconds, len(inputs.train))
    sidecar.publish("models", models)
    sidecar.finish()


def _facts(parameters: Parameters, inputs: Inputs, initial: Initial | None) -> dict[str, Any]:
    """Everything that decides the result."""
    options = dataclasses.asdict(parameters.train)
    del options["init_from"]  # a path
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
        "train": options,
        "init_from": initial and initial.sha256,
    }


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
    )
