"""The one place that imports torchvision: ``from captioner.features.encoders.torchvision_compat import torchvision``.

A CPU-only torch beside a torchvision built for CUDA cannot load torchvision's compiled operators, and then
torchvision's import fails on two operators that it only wants to describe. Image classification needs neither; naming
them is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import library

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _operators_load() -> bool:
    """True where torchvision's own compiled operators load; they bring their schemas, and a second definition would
    clash."""
    found = importlib.util.find_spec("torchvision")  # looks for the package without importing it
    for folder in (found.submodule_search_locations or ()) if found else ():
        for operators in sorted(Path(folder).glob("_C*.so")):
            try:
                torch.ops.load_library(str(operators))
                return True
            except OSError:
                continue
    return False


def _define_missing() -> library.Library | None:
    if _operators_load():
        return None
    fragment = library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            fragment.define(schema)
    return fragment


_library = _define_missing()  # kept: its definitions live as long as it does

import torchvision  # type: ignore[import-untyped]  # noqa: E402

__all__ = ["torchvision"]
