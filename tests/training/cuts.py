"""Runs that end as if the power had failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from captioner.training import checkpoint


class _PowerCut(BaseException):
    pass


@contextmanager
def power_cut(at: str | int) -> Iterator[None]:
    """The run within must end when it has saved a checkpoint.

    Args:
        at: the checkpoint's name, which is its epoch and step; or, counted from 1, the number of checkpoints saved by
            then.
    """
    names, original = [], checkpoint.write_state

    def save(folder: Path, name: str, *rest: Any) -> None:
        original(folder, name, *rest)
        names.append(name)
        if at in (name, len(names)):
            raise _PowerCut

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_PowerCut):
        patch.setattr(checkpoint, "write_state", save)
        yield
