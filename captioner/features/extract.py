"""The extract stage: every image of ``images.h5`` through a frozen encoder into ``features/<encoder>.h5``.

Under ``torchrun``, or started by ``captioner.launch``, every rank extracts its own blocks of rows into the same file.
The file is the same, byte for byte, whatever the number of ranks and however often they were killed.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL
import torch

from captioner.device import core_count, keep_freed_memory, resolve_device
from captioner.errors import CaptionerError
from captioner.features.blocks import blocks_to_do, extract_blocks
from captioner.features.decoding import JpegPipeline
from captioner.features.encoders import Encoder, InputSpec, build_encoder, check_grid
from captioner.features.encoders.torchvision_compat import torchvision
from captioner.features.encoders.weights import BUNDLED_DATASET
from captioner.features.forward import CPU_BATCH, ImageEncoder, resolve_precision
from captioner.features.layout import FORMAT_VERSION, Layout, create_features, storage_size
from captioner.features.preprocess import Preprocessing
from captioner.features.ranks import barrier, broadcast, process_group
from captioner.features.readers import available_memory
from captioner.features.store import FeatureStore
from captioner.features.writer import FeatureWriter
from captioner.fingerprint import fingerprint
from captioner.images.store import ImageStore
from captioner.interrupts import StopSignal
from captioner.launch import Rank
from captioner.parameters import ExtractParameters, RuntimeParameters
from captioner.progress import Progress
from captioner.sidecar import Sidecar

_MOST_WORKERS = 16
_GROWING = "features.h5"
_ACTIVATION_BYTES = 3 << 29


def extract(
    parameters: ExtractParameters,
    runtime: RuntimeParameters,
    encoder: str,
    images: str | Path,
    out: str | Path,
    dataset: str | None = None,
) -> None:
    """Make a features file, or finish one that an earlier run began.

    Args:
        parameters: what determines the features.
        runtime: device, threads and workers; they do not change the result.
        encoder: its name.
        images: the images file.
        out: the features file; work in progress lies in ``<out>.partial/``.
        dataset: name of the data set, for the warning about bundled weights; None: the folder of the images file.

    Raises:
        CaptionerError: a parameter, the weights or the images file is wrong; the disk is too small; a feature is not
            finite; another run is writing the same file; another rank has ended.
        Interrupted: SIGINT or SIGTERM came; everything computed is saved.
    """
    images, out = Path(images), Path(out)
    rank = Rank.from_environment()
    store = ImageStore.open(images)
    device = resolve_device(runtime.device, rank.local_rank)
    with StopSignal(f"extract {encoder}", quiet=not rank.is_main) as stop, process_group(rank):
        model = _build(parameters, encoder)
        facts = _facts(parameters, model, store, device)
        if rank.is_main:
            _warn_about_bundled_weights(parameters, dataset or images.resolve().parent.name)
            _extract_and_publish(parameters, runtime, out, store, model, facts, device, rank, stop)
        else:
            wanted, path = broadcast(None, rank, stop)
            if wanted != fingerprint(facts):
                raise CaptionerError(
                    f"{out}: rank {rank.rank} would compute other features than rank 0 "
                    "(precision, weights, images or parameters differ)"
                )
            if path is not None:
                _extract_shard(parameters, runtime, store, Path(path), model, device, rank, stop)
                barrier(rank, stop)


def _warn_about_bundled_weights(parameters: ExtractParameters, dataset: str) -> None:
    if parameters.weights == "bundled" and dataset != BUNDLED_DATASET:
        click.echo(
            f"warning: the bundled weights were trained on drawn scenes; on {dataset} expect poor captions, "
            "and use extract.weights=pretrained or a path for photos, or encoder=timm/tf_efficientnet_lite0 "
            "extract.weights=package",
            err=True,
        )


def _extract_and_publish(
    parameters: ExtractParameters,
    runtime: RuntimeParameters,
    out: Path,
    store: ImageStore,
    model: Encoder,
    facts: dict[str, Any],
    device: torch.device,
    rank: Rank,
    stop: StopSignal,
) -> None:
    """Rank 0: hold the sidecar, create the file, extract a shard, wait for the other ranks, publish."""
    wanted = fingerprint(facts)
    if _finished(out, wanted):
        click.echo(f"{out}: already there with the same parameters and images", err=True)
        broadcast((wanted, None), rank, stop)
        return
    made_with = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
    if model.name.startswith("timm/"):
        made_with["timm"] = importlib.metadata.version("timm")
    if model.weights_license:
        click.echo(f"{model.name}: licence of its {model.weights_name} weights: {model.weights_license}", err=True)
    with Sidecar(out, {**facts, "made_with": made_with}) as sidecar:
        path = sidecar.path(_GROWING)
        shape = (len(store), parameters.views, model.grid[0] * model.grid[1], model.channels)
        if not (sidecar.resumed and path.exists()):
            free = shutil.disk_usage(sidecar.folder).free
            click.echo(
                f"{out}: {shape} float16, {storage_size(shape) / 1e9:.3f} GB; the disk has {free / 1e9:.1f} GB free",
                err=True,
            )
            create_features(path, shape, store.image_ids, facts, _stated(parameters, store, model))
        broadcast((wanted, str(path.absolute())), rank, stop)
        _extract_shard(parameters, runtime, store, path, model, device, rank, stop)
        barrier(rank, stop)
        layout = Layout(path)
        if not layout.done.all() or layout.size < layout.expected_size:
            raise CaptionerError(
                f"{path}: {int((~layout.done).sum())} rows are missing after the work; run the same command again"
            )
        sidecar.publish(_GROWING, out)
        sidecar.finish()


def _extract_shard(
    parameters: ExtractParameters,
    runtime: RuntimeParameters,
    store: ImageStore,
    path: Path,
    model: Encoder,
    device: torch.device,
    rank: Rank,
    stop: StopSignal,
) -> None:
    """Extract this rank's blocks: every ``world_size``-th block, from block ``rank`` on."""
    cores = max(1, core_count() // rank.local_world_size)
    label = f"extract {model.name}"
    if rank.world_size > 1:
        label += f" (process {rank.rank + 1} of {rank.world_size})"
    with FeatureWriter(path) as writer:
        blocks = blocks_to_do(writer.layout.done, parameters.batch_size, rank.rank, rank.world_size)
        if not blocks:
            return
        everything = blocks_to_do(np.zeros(len(store), bool), parameters.batch_size, rank.rank, rank.world_size)
        total, todo = (sum(count for _, count in some) for some in (everything, blocks))
        encode = ImageEncoder(model, device, resolve_precision(parameters.precision, device))
        keep_freed_memory()
        prepare, workers = preprocessing(parameters, model.spec), runtime.workers or min(cores, _MOST_WORKERS)
        with (
            JpegPipeline(store, prepare, parameters.views, parameters.batch_size, workers) as pipeline,
            Progress(label, total, "images", total - todo) as progress,
        ):

            def between(count: int) -> bool:
                progress.advance(count)
                return not stop.requested

            extract_blocks(
                blocks, pipeline, encode, writer, _threads(runtime.threads or cores, model, parameters), between
            )
            stop.raise_if_requested()


def preprocessing(parameters: ExtractParameters, spec: InputSpec) -> Preprocessing:
    """How an image becomes an encoder's input: by ``ExtractParameters`` and by what the encoder takes."""
    return Preprocessing(
        parameters.fit,
        spec.image_size,
        parameters.seed,
        parameters.hflip,
        parameters.vflip,
        parameters.crop,
        parameters.crop_scale,
        spec.resample,
        parameters.crop_pct or spec.crop_pct,
    )


def _build(parameters: ExtractParameters, encoder: str) -> Encoder:
    check_grid(parameters.grid)
    return build_encoder(
        encoder, parameters.weights, parameters.seed, parameters.grid, parameters.image_size, parameters.layer
    )


def _facts(parameters: ExtractParameters, model: Encoder, store: ImageStore, device: torch.device) -> dict[str, Any]:
    """Inputs of the features' fingerprint; a path or ``auto`` is replaced by what it resolves to."""
    plan = preprocessing(parameters, model.spec)
    return {
        "format_version": FORMAT_VERSION,
        "version": parameters.version,
        "images": store.fingerprint,
        "encoder": model.name,
        "layer": model.layer,
        "weights_name": model.weights_name,
        "weights_sha256": model.weights_sha256,
        "grid": list(model.grid),
        "precision": resolve_precision(parameters.precision, device),
        "batch_size": parameters.batch_size,
        "preprocessing": plan.facts(model.spec.mean, model.spec.std),
        "views": parameters.views,
        "augmentation": plan.augmentation() if parameters.views > 1 else None,
    }


def _stated(parameters: ExtractParameters, store: ImageStore, model: Encoder) -> dict[str, Any]:
    """Attributes that do not determine the features, but that a model needs for further images."""
    stated: dict[str, Any] = {
        "image_size": store.image_size,
        "jpeg_quality": store.jpeg_quality,
        "weights_license": model.weights_license,
    }
    if parameters.weights == "random":
        stated["weights_seed"] = parameters.seed
    return {key: value for key, value in stated.items() if value is not None}


def _finished(out: Path, wanted: str) -> bool:
    """Whether ``out`` already is the file that this run would make."""
    if not out.is_file():
        return False
    try:
        return FeatureStore.open(out).fingerprint == wanted
    except CaptionerError:
        return False


def _threads(wanted: int, model: Encoder, parameters: ExtractParameters) -> int:
    """As many of the wanted threads as fit into memory: each holds the activations of a batch of its own."""
    # bytes, if all of it is float32
    batch = 4 * model.activations * min(CPU_BATCH, parameters.batch_size) * (model.spec.image_size / 224) ** 2
    return max(1, min(wanted, int(max(_ACTIVATION_BYTES, available_memory() / 4) // batch)))
