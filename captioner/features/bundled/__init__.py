"""The bundled encoder: squeezenet1_1 trained by this project on drawn scenes; see README.md beside this file.

``weights_path()`` is the file of weights; ``python -m captioner.features.bundled.train`` made it.
"""

from __future__ import annotations

from pathlib import Path

ENCODER = "squeezenet1_1"


def weights_path() -> Path:
    """The safetensors file, fp16, with the names of ``torchvision.models.squeezenet1_1().features``."""
    return Path(__file__).with_name(f"{ENCODER}.safetensors")
