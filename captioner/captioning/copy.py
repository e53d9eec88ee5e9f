"""Copy a model to pass it on."""

from __future__ import annotations

from pathlib import Path

from captioner.model_io import ENCODER, load_model, save_model
from captioner.sidecar import write_atomically


def copy_model(folder: Path, out: Path, half: bool = False) -> None:
    """Copy a model, all that captioning needs of it, into the folder ``out``.

    Args:
        half: store the decoder's weights as float16: half the size, and captions that hardly differ.

    Raises:
        CaptionerError: as ``load_model``; or a weight is too large for float16.
    """
    model = load_model(folder)
    if model.config["weights_name"] == "file":
        write_atomically(out / ENCODER, (folder / ENCODER).read_bytes())
    facts = {
        key: value for key, value in model.config.items() if key not in ("format_version", "vocabulary", "decoder")
    }
    save_model(out, model.decoder, model.vocabulary, facts, half)
