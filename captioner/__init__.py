"""Trainable image captioning on cached CNN features.

from captioner import Captioner
captioner = Captioner.load()  # a model of photos; Captioner.load("models") is the pipeline's
print(captioner.caption("holiday.jpg")[0].text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.captioning import Captioner

__version__ = "0.1.0"
__all__ = ["Captioner"]


def __getattr__(name: str) -> Any:
    if (
        name == "Captioner"
    ):  # imported when it is asked for: it brings torch, which the processes that decode images do without
        from captioner.captioning import Captioner

        return Captioner
    raise AttributeError(f"module 'captioner' has no attribute {name!r}")
