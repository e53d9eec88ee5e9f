"""``captioner verify`` finds which file it is and hands on what is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from captioner.cli import main
from captioner.features.store import write_features
from captioner.images.store import write_images


def _verify(path: Path):
    return CliRunner().invoke(main, ["verify", str(path)])


def _images(path: Path) -> Path:
    records = []
    for row in range(3):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (row, 80, 90)).save(buffer, "JPEG")
        records.append((row, buffer.getvalue(), 30, 40))
    write_images(path, records)
    return path


def _features() -> np.ndarray:
    return np.arange(60, dtype=np.float16).reshape(3, 1, 4, 5)


def test_good_files(tmp_path: Path) -> None:
    run = _verify(_images(tmp_path / "images.h5"))
    assert run.exit_code == 0 and "images.h5: ok, 3 images" in run.output
    write_features(tmp_path / "features.h5", _features(), [1, 2, 3])
    run = _verify(tmp_path / "features.h5")
    assert run.exit_code == 0 and "features.h5: ok, features 3 x 1 x 4 x 5" in run.output


def test_a_changed_byte_of_an_image(tmp_path: Path) -> None:
    path = _images(tmp_path / "images.h5")
    with h5py.File(path) as file:
        offset = file["jpeg"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 300] ^= 255
    path.write_bytes(content)
    run = _verify(path)
    assert run.exit_code == 1 and "fingerprint" in run.output and "ok" not in run.output


def test_a_feature_that_is_not_finite(tmp_path: Path) -> None:
    write_features(tmp_path / "features.h5", _features(), [1, 2, 3])
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        file["features"][1, 0, 2, 3] = np.nan
    run = _verify(tmp_path / "features.h5")
    assert run.exit_code == 1 and "features.h5" in run.output and "finite" in run.output


@pytest.mark.parametrize("kept", [0, 10, 600])
def test_truncated_files(tmp_path: Path, kept: int) -> None:
    path = _images(tmp_path / "images.h5")
    path.write_bytes(path.read_bytes()[:kept])
    run = _verify(path)
    assert run.exit_code == 1 and "truncated or no HDF5 file" in run.output and run.output.count("\n") == 1


def test_other_files(tmp_path: Path) -> None:
    assert "none.h5: not there" in _verify(tmp_path / "none.h5").output
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    run = _verify(tmp_path / "other.h5")
    assert run.exit_code == 1 and "neither an images nor a features file" in run.output
    assert _verify(tmp_path).exit_code == 1
