"""Captions of any images by a trained model: ``Captioner.load().caption(["holiday.jpg"])``.

``captioner`` computes with torch, ``onnx`` with onnxruntime; ``base`` is what both share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captioner.captioning.results import Caption, ImageCaptions

if TYPE_CHECKING:
    from captioner.captioning.captioner import Captioner

__all__ = ["Caption", "Captioner", "ImageCaptions"]


def __getattr__(name: str) -> Any:
    if name == "Captioner":  # imported when it is asked for: it brings torch, which the ONNX runtime does without
        from captioner.captioning.captioner import Captioner

        return Captioner
    raise AttributeError(f"module 'captioner.captioning' has no attribute {name!r}")
