"""Imports from pycocoevalcap, with a clear error where it is not installed."""

from __future__ import annotations

import importlib
from typing import Any

from captioner.errors import CaptionerError


def import_class(module: str, name: str) -> Any:
    """A class of pycocoevalcap.

    Raises:
        CaptionerError: the package is missing or broken.
    """
    try:
        return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)
    except ImportError as error:
        raise CaptionerError(
            f"pycocoevalcap: cannot be imported ({error}); install it with pip install pycocoevalcap==1.2"
        ) from error
