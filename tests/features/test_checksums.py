"""Damage in a features file is found by its checksums, by whoever reads the row first."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from captioner.errors import CaptionerError
from captioner.features.checksums import crc32
from captioner.features.store import FeatureStore, write_features
from captioner.features.verify import verify_features

SHAPE = (12, 2, 4, 6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    features = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)
    write_features(tmp_path / "f.h5", features, range(100, 112))
    return tmp_path / "f.h5"


def damage(path: Path, row: int, view: int) -> None:
    """Flip one bit of a mantissa: the value stays finite."""
    store = FeatureStore.open(path)
    position = store.offset + row * store.row_size + view * store.row_size // SHAPE[1] + 10
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_checksums_are_the_standard_ones(path: Path) -> None:
    # the check value of CRC-32 (ISO-HDLC)
    assert crc32(np.frombuffer(b"123456789", np.uint8)[None]).tolist() == [0xCBF43926]
    with h5py.File(path, "r") as file:
        assert file["crc32"].shape == (12, 2) and file["crc32"].dtype == np.uint32
        assert file["crc32"][...].tolist() == [crc32(row).tolist() for row in file["features"][...]]


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_damaged_row_is_refused_when_it_is_read(path: Path, where: str) -> None:
    damage(path, 7, 1)
    with FeatureStore.open(path).reader(where) as reader:
        reader.read([0, 7, 3, 7])  # the damage is in the other view
        reader.read([6, 8], [1, 1])
        with pytest.raises(CaptionerError, match="f.h5: row 7 is damaged.*run the extract stage again"):
            reader.read([0, 7], [1, 1])
    assert verify_features(path) == [f"{path}: 1 images have damaged features: their checksums differ (107)"]


def test_a_row_is_checked_once(path: Path) -> None:
    store = FeatureStore.open(path)
    with store.reader("ram") as reader:
        expected = reader.read(range(12))
        key_before = path.stat().st_mtime_ns
        damage(path, 2, 0)
        os.utime(path, ns=(key_before, key_before))  # the same file for all that can be told cheaply
        with store.reader("disk") as other:  # rows checked by one reader are not checked by the next
            assert not torch.equal(other.read([2]), expected[2:3])


def test_files_of_older_versions_have_none(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["crc32"]
    damage(path, 2, 0)
    with FeatureStore.open(path).reader("ram") as reader:
        assert reader.read(range(12)).shape == (12, 4, 6)
    assert verify_features(path) == []
