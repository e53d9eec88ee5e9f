"""Small images and quick extractions for the tests of this folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.features.extract import extract
from captioner.images.store import write_images
from captioner.parameters import ExtractParameters, RuntimeParameters
from tests.data import ROOT

QUICK = {"weights": "random", "image_size": 64, "batch_size": 8, "precision": "fp32", "grid": "native"}
ENCODER = "squeezenet1_1"


def image(number: int, width: int = 80, height: int = 64) -> Image.Image:
    """Smooth colours that differ from image to image and from place to place."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        127 + 120 * np.sin(x / (7 + number % 5) + number),
        127 + 120 * np.cos(y / (5 + number % 3) - number),
        255 * x * y / (width * height),
    ]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95)
    return data.getvalue()


def make_images_file(path: Path, count: int) -> Path:
    """An images file whose ids are 1000, 1003, 1006, ..."""
    records = []
    for number in range(count):
        width, height = (80, 64) if number % 2 else (64, 90)
        records.append((1000 + 3 * number, jpeg(image(number, width, height)), height, width))
    write_images(path, records)
    return path


def quick(**changes: object) -> ExtractParameters:
    """Parameters of a quick extraction."""
    return ExtractParameters(**{**QUICK, **changes})


def runtime(**changes: object) -> RuntimeParameters:
    return RuntimeParameters(**{"device": "cpu", "threads": 1, "workers": 1, **changes})


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 images: with batch_size=8, two whole blocks and a part of one."""
    folder = tmp_path_factory.mktemp("images") / "scenes"
    folder.mkdir()
    return make_images_file(folder / "images.h5", 21)


_PROGRAM = """
import json, sys
from captioner.errors import CaptionerError
from captioner.features import syncing
from captioner.features.extract import extract
from captioner.launch import launch, launched_by_torchrun, process_count
from captioner.parameters import ExtractParameters, RuntimeParameters
task = json.loads(sys.argv[1])
syncing._SYNC_SECONDS = task["sync"]
parameters, runtime = ExtractParameters(**task["parameters"]), RuntimeParameters(**task["runtime"])
try:
    if process_count(runtime) > 1 and not launched_by_torchrun():
        launch("program", process_count(runtime))
    else:
        extract(parameters, runtime, task["encoder"], task["images"], task["out"])
except CaptionerError as error:
    error.show()
    sys.exit(error.exit_code)
if task["memory"]:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def program(
    images: Path,
    out: Path,
    sync: float = 3.0,
    memory: bool = False,
    runtime: dict | None = None,
    launcher: list[str] | None = None,
    **changes: object,
) -> tuple[list[str], dict]:
    """Command and environment of an extraction in a process of its own, which starts others as the stage does."""
    task = {
        "parameters": {**QUICK, **changes},
        "runtime": {"device": "cpu", "threads": 1, "workers": 1, **(runtime or {})},
        "encoder": ENCODER,
        "images": str(images),
        "out": str(out),
        "sync": sync,
        "memory": memory,
    }
    script = out.parent / "program.py"
    script.write_text(_PROGRAM)
    command = [*(launcher or [sys.executable]), str(script), json.dumps(task)]
    return command, {**os.environ, "PYTHONPATH": f"{ROOT}:{script.parent}", "OMP_NUM_THREADS": "1"}


def run(command: list[str], environment: dict) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def plain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of all images with three views."""
    out = tmp_path_factory.mktemp("features") / "plain.h5"
    extract(quick(views=3), runtime(), ENCODER, images, out)
    return out
