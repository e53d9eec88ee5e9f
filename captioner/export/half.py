"""A trained model with the decoder's weights in half precision."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from captioner.captioning.copy import copy_model
from captioner.errors import CaptionerError
from captioner.model_io import CONFIG, ENCODER, WEIGHTS


def export_half(model: Path, out: Path) -> list[Path]:
    """Write the folder ``out``, which does not exist yet or is empty. It appears only once it is whole.

    Returns:
        The files.

    Raises:
        CaptionerError: no model in ``model``; ``out`` is in the way; or a weight is too large for half precision.
    """
    if out.is_symlink() or out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CaptionerError(f"{out}: there is something already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        copy_model(model, draft, half=True)
        draft.chmod(0o755)
        os.replace(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return [out / name for name in (WEIGHTS, CONFIG, ENCODER) if (out / name).exists()]
