"""The extract stage: every picture of ``images.h5`` through a frozen encoder into ``features/<encoder>.h5``.

``extract`` is the one door. It may run in several processes at once: under ``torchrun``, or started here for several
GPUs or for ``runtime.processes``. The result is the same, byte for byte, whatever their number and however often they
were killed in between.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import PIL
import torch

from captioner.device import core_count, resolve_device
from captioner.errors import CaptionerError
from captioner.features.blocks import blocks_to_do, extract_blocks
from captioner.features.decoding import Decoder
from captioner.features.encoders import Encoder, build_encoder, check_grid
from captioner.features.forward import CPU_BATCH, PictureEncoder, keep_freed_memory, resolve_precision
from captioner.features.layout import FORMAT_VERSION, FeatureWriter, Layout, create_features, storage_size
from captioner.features.preprocess import Preprocessing
from captioner.features.readers import available_memory
from captioner.features.store import FeatureStore
from captioner.features.torchvision_compat import torchvision
from captioner.features.weights import BUNDLED_DATASET
from captioner.fingerprint import fingerprint
from captioner.images.store import ImageStore
from captioner.interrupts import StopSignal
from captioner.parameters.schema import ExtractParameters, RuntimeParameters
from captioner.processes import LocalProcesses, Rank, Torchrun, local_world
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
        runtime: where and with how many processes; determines nothing.
        encoder: name of a torchvision classifier.
        images: the images file.
        out: the features file; work in progress lies in ``<out>.partial/``.
        dataset: name of the data set, for the warning about bundled weights; None: the name of the images file's
            folder.

    Raises:
        CaptionerError: a parameter, the weights or the images file is wrong; the disk is too small; a feature is not
            finite; another process is at work on it.
        Interrupted: SIGINT or SIGTERM came; everything computed is saved.
    """
    images, out = Path(images), Path(out)
    store = ImageStore.open(images)
    torchrun = Torchrun.from_environment("extract")
    rank = torchrun.rank if torchrun else Rank()
    device = resolve_device(runtime.device, rank.local_rank)
    with StopSignal(f"extract {encoder}") as stop:
        model = _build(parameters, encoder)
        facts = _facts(parameters, model, store, device)
        if (
            rank.rank == 0
            and parameters.weights == "bundled"
            and (dataset or images.resolve().parent.name) != BUNDLED_DATASET
        ):
            click.echo(
                f"warning: the bundled weights were trained on drawn scenes; on {dataset or images.resolve().parent.name} expect poor captions, "
                "and use extract.weights=imagenet or a path for real pictures",
                err=True,
            )
        if rank.rank == 0:
            _lead(parameters, runtime, images, out, store, model, facts, device, torchrun, stop)
        else:
            told = json.loads(torchrun.store.hear("begin", stop.raise_if_requested))
            if told["fingerprint"] != fingerprint(facts):
                raise CaptionerError(
                    f"{out}: process {rank.rank} would compute other features than process 0 (precision, weights, images or parameters differ)"
                )
            if not told["finished"]:
                _share(parameters, runtime, store, Path(told["path"]), model, device, rank, stop, None)
            torchrun.store.tell(f"finished/{rank.rank}", "")


def _lead(
    parameters: ExtractParameters,
    runtime: RuntimeParameters,
    images: Path,
    out: Path,
    store: ImageStore,
    model: Encoder,
    facts: dict[str, Any],
    device: torch.device,
    torchrun: Torchrun | None,
    stop: StopSignal,
) -> None:
    """Rank 0: hold the sidecar, make the file, do a share of the work, wait for the others, publish."""
    begin = {"fingerprint": fingerprint(facts), "finished": False, "path": ""}
    if _finished(out, begin["fingerprint"]):
        click.echo(f"{out}: already there with the same parameters and pictures", err=True)
        if torchrun:
            torchrun.store.tell("begin", json.dumps({**begin, "finished": True}))
            torchrun.store.hear_all("finished", torchrun.rank.world, stop.raise_if_requested)
        return
    made_with = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
    with Sidecar(out, {**facts, "made_with": made_with}) as sidecar, ExitStack() as stack:
        path = sidecar.path(_GROWING)
        shape = (len(store), parameters.views, model.grid[0] * model.grid[1], model.channels)
        if not (sidecar.resumed and path.exists()):
            free = shutil.disk_usage(sidecar.folder).free
            click.echo(
                f"{out}: {shape} float16, {storage_size(shape) / 1e9:.3f} GB; the disk has {free / 1e9:.1f} GB free",
                err=True,
            )
            create_features(path, shape, store.image_ids, facts)
        world = torchrun.rank.world if torchrun else local_world(runtime)
        others = None
        if torchrun:
            torchrun.store.tell("begin", json.dumps({**begin, "path": str(path.absolute())}))
            rank = torchrun.rank
        else:
            rank = Rank(0, world, 0, world)
            task = {
                "parameters": asdict(parameters),
                "runtime": asdict(runtime),
                "encoder": model.name,
                "images": str(images.absolute()),
                "path": str(path.absolute()),
            }
            others = stack.enter_context(LocalProcesses("captioner.features.extract", "extraction", world, task))
        _share(parameters, runtime, store, path, model, device, rank, stop, others)
        if torchrun:
            torchrun.store.hear_all("finished", torchrun.rank.world, stop.raise_if_requested)
        if others:
            others.wait(stop.raise_if_requested)
        layout = Layout(path)
        if not layout.done.all() or layout.size < layout.expected_size:
            raise CaptionerError(
                f"{path}: {int((~layout.done).sum())} rows are missing after the work; run the same command again"
            )
        sidecar.publish(_GROWING, out)
        sidecar.finish()


def _share(
    parameters: ExtractParameters,
    runtime: RuntimeParameters,
    store: ImageStore,
    path: Path,
    model: Encoder,
    device: torch.device,
    rank: Rank,
    stop: StopSignal,
    others: LocalProcesses | None,
) -> None:
    """One process's blocks."""
    cores = max(1, core_count() // rank.local_world)
    label = f"extract {model.name}" + (f" (process {rank.rank + 1} of {rank.world})" if rank.world > 1 else "")
    with FeatureWriter(path) as writer:
        blocks = blocks_to_do(writer.layout.done, parameters.batch_size, rank.rank, rank.world)
        if not blocks:
            return
        total = sum(
            min(parameters.batch_size, len(store) - first)
            for first in range(rank.rank * parameters.batch_size, len(store), rank.world * parameters.batch_size)
        )
        done = total - sum(count for _, count in blocks)
        encode = PictureEncoder(model, device, resolve_precision(parameters.precision, device))
        keep_freed_memory()
        workers = runtime.workers or min(cores, _MOST_WORKERS)
        with (
            Decoder(store, preprocessing(parameters), parameters.views, parameters.batch_size, workers) as decoder,
            Progress(label, total, "pictures", done) as progress,
        ):

            def between(count: int) -> bool:
                progress.advance(count)
                if others and not stop.requested:
                    others.check()
                return not stop.requested

            extract_blocks(
                blocks, decoder, encode, writer, _threads(runtime.threads or cores, model, parameters), between
            )
            stop.raise_if_requested()


def preprocessing(parameters: ExtractParameters) -> Preprocessing:
    """The fields of ``ExtractParameters`` that say how a picture becomes an encoder's input."""
    return Preprocessing(
        parameters.fit,
        parameters.image_size,
        parameters.seed,
        parameters.hflip,
        parameters.vflip,
        parameters.crop,
        parameters.crop_scale,
    )


def _build(parameters: ExtractParameters, encoder: str) -> Encoder:
    check_grid(parameters.grid)
    return build_encoder(encoder, parameters.weights, parameters.seed, parameters.grid, parameters.image_size)


def _facts(parameters: ExtractParameters, model: Encoder, store: ImageStore, device: torch.device) -> dict[str, Any]:
    """Everything that determines the features. Values that came from a path or from ``auto`` stand here as what they
    turned out to be."""
    plan = preprocessing(parameters)
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
        "preprocessing": plan.facts(),
        "views": parameters.views,
        "augmentation": plan.augmentation() if parameters.views > 1 else None,
    }


def _finished(out: Path, wanted: str) -> bool:
    """Whether ``out`` already is the file that this run would make."""
    if not out.is_file():
        return False
    try:
        return FeatureStore.open(out).fingerprint == wanted
    except CaptionerError:
        return False


def _threads(wanted: int, model: Encoder, parameters: ExtractParameters) -> int:
    """As many of the wanted threads as memory has room for: each holds the activations of a batch of its own."""
    batch = (
        4 * model.activations * min(CPU_BATCH, parameters.batch_size) * (parameters.image_size / 224) ** 2
    )  # bytes, were all of it float32
    return max(1, min(wanted, int(max(_ACTIVATION_BYTES, available_memory() / 4) // batch)))


def join(rank: Rank, task: dict[str, Any]) -> None:
    """A process that another one started on the same machine; ``task`` is what ``_lead`` gave it."""
    parameters, runtime = ExtractParameters(**task["parameters"]), RuntimeParameters(**task["runtime"])
    device = resolve_device(runtime.device, rank.local_rank)
    with StopSignal(f"extract {task['encoder']}") as stop:
        model = _build(parameters, task["encoder"])
        _share(
            parameters, runtime, ImageStore.open(task["images"]), Path(task["path"]), model, device, rank, stop, None
        )
