"""A trained model with the decoder's weights in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

from captioner.captioning.copy import copy_model
from captioner.captioning.onnx.files import refuse_export
from captioner.errors import CaptionerError
from captioner.model_io import CONFIG, ENCODER, WEIGHTS, read_config
from captioner.sidecar import Sidecar

_FOLDER = "model"


def export_half(model: Path, out: Path) -> list[Path]:
    """Write the folder ``out``, which does not exist yet or is empty. It appears only once it is whole.

    Returns:
        The files.

    Raises:
        CaptionerError: no model in ``model``; ``out`` is in the way; or a weight is too large for half precision.
    """
    if out.is_symlink() or out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CaptionerError(f"{out}: there is something already; name a new folder")
    refuse_export(model)
    with Sidecar(out, {"model": read_config(model)["fingerprint"]}) as sidecar:
        shutil.rmtree(sidecar.path(_FOLDER), ignore_errors=True)
        copy_model(model, sidecar.path(_FOLDER), half=True)
        sidecar.publish(_FOLDER, out)
        sidecar.finish()
    return [out / name for name in (WEIGHTS, CONFIG, ENCODER) if (out / name).exists()]
