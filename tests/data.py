"""Where tests find real data, and what they say when it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


DATA = Path(os.environ.get("CAPTIONER_TEST_DATA", ROOT.parent / "shared" / "data"))


def real_data(name: str) -> Path:
    """The folder or file ``name`` of the real test data; skips the calling test where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data absent: no {name} in CAPTIONER_TEST_DATA")
    return path


def case(name: str) -> Path:
    """The folder of a small input that failed once, ``cases/<name>`` beside the real test data; skips the calling test
    where it is absent."""
    path = DATA.parent / "cases" / name
    if not path.exists():
        pytest.skip(f"case absent: no {name} beside CAPTIONER_TEST_DATA")
    return path
