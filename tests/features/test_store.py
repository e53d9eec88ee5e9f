"""The features file, its readers and its verification, against plain h5py and numpy."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from captioner.cli.verify import command as verify
from captioner.errors import CaptionerError
from captioner.features.checksums import RowChecks
from captioner.features.layout import DEFAULT_FACTS, Layout, create_features
from captioner.features.readers import GpuReader
from captioner.features.store import FeatureStore, write_features
from captioner.features.verify import verify_features
from captioner.features.writer import FeatureWriter
from captioner.fingerprint import fingerprint

SHAPE = (17, 2, 6, 40)
IDS = np.array([900, 5, 77, -3, 2**40, *range(10, 22)])


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)


@pytest.fixture
def path(tmp_path: Path, features: np.ndarray) -> Path:
    write_features(tmp_path / "f.h5", features, IDS, {"encoder": "alexnet", "grid": [2, 3]})
    return tmp_path / "f.h5"


def test_plain_h5py_reads_the_layout_of_the_design(path: Path, features: np.ndarray) -> None:
    with h5py.File(path, "r") as file:
        assert sorted(file) == ["crc32", "done", "features", "image_id"]
        assert file["features"].dtype == np.float16 and file["features"].chunks is None
        np.testing.assert_array_equal(file["features"][...], features)
        np.testing.assert_array_equal(file["image_id"][...], IDS)
        assert file["image_id"].dtype == np.int64 and file["done"].dtype == np.uint8 and file["done"][...].all()
        assert file["features"].id.get_offset() % 4096 == 0
        attributes = dict(file.attrs)
    assert (
        attributes["encoder"] == b"alexnet"
        and attributes["grid"].tolist() == [2, 3]
        and attributes["views"] == 2
        and attributes["format_version"] == 2
    )


def test_same_content_same_bytes(path: Path, features: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    other = path.with_name("g.h5")
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_features(other, features, IDS, {"encoder": "alexnet", "grid": [2, 3]})
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def test_file_is_allocated_before_the_work(tmp_path: Path) -> None:
    create_features(tmp_path / "f.h5", (100, 1, 49, 64), range(100), {**DEFAULT_FACTS, "grid": [7, 7]})
    assert os.stat(tmp_path / "f.h5").st_blocks * 512 >= 100 * 49 * 64 * 2
    assert not Layout(tmp_path / "f.h5").done.any()


def test_store_attributes_and_rows(path: Path) -> None:
    store = pickle.loads(pickle.dumps(FeatureStore.open(path)))
    assert store.shape == SHAPE and len(store) == 17 and store.grid == (2, 3) and store.views == 2
    assert store.encoder == "alexnet" and store.fingerprint == fingerprint(store.facts)
    assert store.rows([77, 900, 77, -3]).tolist() == [2, 0, 2, 3]
    assert store.rows(np.array([2**40])).tolist() == [4]
    assert store.rows([]).tolist() == []


def test_stated_attributes_are_optional_and_no_part_of_the_fingerprint(path: Path, features: np.ndarray) -> None:
    plain = FeatureStore.open(path)
    assert (plain.weights_seed, plain.image_size, plain.jpeg_quality) == (1, None, None)
    stated = {"weights_seed": 7, "image_size": 256, "jpeg_quality": 90}
    store = write_features(path.with_name("g.h5"), features, IDS, {"encoder": "alexnet", "grid": [2, 3]}, stated)
    assert (store.weights_seed, store.image_size, store.jpeg_quality) == (7, 256, 90)
    assert store.fingerprint == plain.fingerprint and verify_features(store.path) == []


def test_a_missing_image_is_named(path: Path) -> None:
    with pytest.raises(CaptionerError, match="image 4711"):
        FeatureStore.open(path).rows([5, 4711])


@pytest.mark.parametrize("where", ["ram", "disk", "auto", "gpu"])
def test_readers_equal_a_plain_gather(path: Path, features: np.ndarray, where: str) -> None:
    if where == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = "cuda" if where == "gpu" else "cpu"
    rows, views = np.array([3, 16, 0, 3, 3, 9]), np.array([0, 1, 1, 1, 0, 0])
    with FeatureStore.open(path).reader(where, device) as reader:
        batch = reader.read(rows, views)
        assert batch.dtype == torch.float16 and batch.is_contiguous() and batch.device.type == device
        np.testing.assert_array_equal(batch.cpu().numpy(), features[rows, views])
        np.testing.assert_array_equal(reader.read(torch.tensor([7, 1])).cpu().numpy(), features[[7, 1], 0])
        np.testing.assert_array_equal(
            reader.read(np.arange(17).repeat(9)).cpu().numpy(), features[np.arange(17).repeat(9), 0]
        )
        batch.zero_()  # a copy: the file and later batches are untouched
        np.testing.assert_array_equal(reader.read(rows, views).cpu().numpy(), features[rows, views])
        assert reader.read([]).shape == (0, 6, 40)


@pytest.mark.parametrize("parts", [1, 500, 1 << 20])
def test_the_gpus_reader_holds_the_whole_file_in_whatever_parts_it_came(
    path: Path, features: np.ndarray, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.features.readers._UPLOAD_BYTES", parts)
    store = FeatureStore.open(path)
    with GpuReader.load(path, store.offset, store.shape, torch.device("cpu"), RowChecks(path, None)) as reader:
        assert reader.shape == features.shape
        np.testing.assert_array_equal(reader.read([3, 16, 3], [0, 1, 1]).numpy(), features[[3, 16, 3], [0, 1, 1]])


@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize(("rows", "views"), [([17], None), ([-1], None), ([0], [2]), ([0], [-1]), ([0, 1], [0])])
def test_rows_outside_the_file_are_refused(path: Path, where: str, rows: list[int], views: list[int] | None) -> None:
    with FeatureStore.open(path).reader(where) as reader, pytest.raises(IndexError):
        reader.read(rows, views)


def test_auto_leaves_memory_for_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.features.readers.available_memory", lambda: 1000)
    assert FeatureStore.open(path).reader("auto").where == "disk"


def test_gpu_needs_a_gpu(path: Path) -> None:
    with pytest.raises(CaptionerError, match="features_on"):
        FeatureStore.open(path).reader("gpu", "cpu")


def test_disk_reader_survives_a_fork(path: Path, features: np.ndarray) -> None:
    reader = FeatureStore.open(path).reader("disk")
    reader.read([1])  # its threads are running now
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(reader.read([2, 3]).numpy(), features[[2, 3], 0]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_sound_file_has_no_faults(path: Path) -> None:
    assert verify_features(path) == []


def _edit(path: Path, position: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(data)


def test_verify_names_every_fault(path: Path) -> None:
    layout = Layout(path)
    _edit(path, layout.offset + 2 * layout.row_size + 10, np.array([np.inf], "<f2").tobytes())
    _edit(path, layout.offset + 4 * layout.row_size, np.array([np.nan], "<f2").tobytes())
    _edit(path, layout.done_offset + 7, b"\0")
    with h5py.File(path, "r+") as file:
        file.attrs["encoder"] = np.bytes_("resnet18")
        file.attrs["fingerprint"] = np.bytes_("f" * 64)
    text = "\n".join(verify_features(path))
    assert "2 images have non-finite features (77, 1099511627776)" in text
    assert "1 of 17 rows were never written" in text
    assert "ffffffffffff does not belong to its facts" in text
    assert "encoder is 'resnet18'" in text
    with pytest.raises(CaptionerError, match="1 of 17 rows"):
        FeatureStore.open(path)


def test_a_damaged_bit_is_refused_or_named_and_never_crashes(path: Path) -> None:
    """Any bit outside the features, of which one may be flipped and still be a number."""
    whole, layout, generator = path.read_bytes(), Layout(path), np.random.default_rng(0)
    inside = range(layout.offset, layout.offset + layout.row_size * layout.shape[0])
    indices = [index for index in range(len(whole)) if index not in inside]
    refused = 0
    for index in generator.choice(indices, 1500, replace=False):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        refused += CliRunner().invoke(verify, [str(path)], catch_exceptions=False).exit_code != 0
        with contextlib.suppress(CaptionerError):
            FeatureStore.open(path)
    assert refused > 300


@pytest.mark.parametrize("kept", [0.9, 0.02, 0.0])
def test_truncated_file(path: Path, kept: float) -> None:
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(CaptionerError, match="f.h5.*extract"):
        FeatureStore.open(path)
    assert len(verify_features(path)) >= 1


def test_files_that_are_no_features(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="no such features file"):
        FeatureStore.open(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.zeros((2, 1, 1, 1), np.float16)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink("/etc/passwd", "features")
    for name in ("text.h5", "other.h5", "link.h5"):
        with pytest.raises(CaptionerError, match=name):
            FeatureStore.open(tmp_path / name)
        assert verify_features(tmp_path / name)


def test_wrong_shapes_and_duplicate_ids(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="image id 5 comes more than once"):
        write_features(tmp_path / "f.h5", np.zeros((2, 1, 4, 3)), [5, 5])
    with pytest.raises(CaptionerError, match="do not fit"):
        write_features(tmp_path / "f.h5", np.zeros((2, 1, 4, 3)), [5, 6], {"grid": [3, 3]})
    with pytest.raises(CaptionerError, match="for 3 images"):
        write_features(tmp_path / "f.h5", np.zeros((2, 1, 4, 3)), [5, 6, 7])
    assert not list(tmp_path.iterdir())


def test_rows_are_marked_only_after_a_sync(tmp_path: Path) -> None:
    create_features(tmp_path / "f.h5", (4, 1, 1, 2), range(4), DEFAULT_FACTS)
    with FeatureWriter(tmp_path / "f.h5") as writer:
        writer.write(1, np.ones((2, 1, 1, 2), np.float16))
        assert not Layout(tmp_path / "f.h5").done.any()
        writer.sync()
        assert Layout(tmp_path / "f.h5").done.tolist() == [False, True, True, False]
        with pytest.raises(ValueError):
            writer.write(3, np.ones((2, 1, 1, 2), np.float16))


def test_disk_too_small(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        with pytest.raises(CaptionerError, match=r"need 0\.2\d\d GB and the disk has 0\.002 GB free"):
            write_features(tmp_path / "f.h5", np.zeros((1000, 1, 100, 1024), np.float16), range(1000))
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
