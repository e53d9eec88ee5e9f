"""torchvision comes in beside any build of torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from captioner.features.encoders import torchvision_compat
from tests.data import ROOT


def test_import_where_the_compiled_operators_do_not_load() -> None:
    program = """
import torch
def fail(path):
    raise OSError("built for another torch")
torch.ops.load_library = fail
from captioner.features.encoders.torchvision_compat import torchvision
assert torchvision.models.alexnet() is not None
assert torch.ops.torchvision.nms.default is not None and torch.ops.torchvision.qnms.default is not None
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr


def test_operators_that_load_are_not_defined_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.ops.load_library", lambda path: None)
    assert torchvision_compat._define_missing() is None
