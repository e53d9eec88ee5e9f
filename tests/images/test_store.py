"""The images file: round trip, reproducible bytes, and refusal of damaged files."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import time
import tracemalloc

import h5py
import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.images.store import ImageStore, create_images, write_images
from captioner.images.verify import verify_images
from tests.images.making import jpeg

RECORDS = [(70, jpeg(40, 30, 1), 30, 40), (3, jpeg(20, 25, 2), 25, 20), (2**40, jpeg(8, 9, 3), 9, 8)]


@pytest.fixture
def path(tmp_path):
    write_images(tmp_path / "images.h5", RECORDS)
    return tmp_path / "images.h5"


def test_round_trip(path):
    store = ImageStore.open(path)
    assert len(store) == 3
    assert store.image_ids.tolist() == [3, 70, 2**40] and store.image_ids.dtype == np.int64
    assert store.sizes.tolist() == [[25, 20], [30, 40], [9, 8]] and store.sizes.dtype == np.int32
    assert [store.jpeg(row) for row in range(3)] == [RECORDS[1][1], RECORDS[0][1], RECORDS[2][1]]
    assert store.image(1).size == (40, 30) and store.image(1).mode == "RGB"
    assert store.rows([2**40, 3]).tolist() == [2, 0]


def test_layout_is_the_documented_one(path):
    with h5py.File(path) as file:
        assert {name: file[name].dtype.str for name in file} == {
            "jpeg": "|u1",
            "offset": "<i8",
            "image_id": "<i8",
            "size": "<i4",
        }
        assert file["jpeg"].chunks is None and file.attrs["format_version"] == 1
        content = b"".join(file[name][:].tobytes() for name in ("image_id", "offset", "size", "jpeg"))
        assert (
            bytes(file.attrs["fingerprint"]).decode()
            == hashlib.sha256(content).hexdigest()
            == ImageStore.open(path).fingerprint
        )


def test_equal_content_gives_equal_bytes(path, tmp_path):
    time.sleep(1.1)  # HDF5 time stamps would differ by a second
    write_images(tmp_path / "again.h5", list(reversed(RECORDS)))
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_fingerprint_follows_the_content(path, tmp_path):
    other = write_images(tmp_path / "other.h5", [RECORDS[0], RECORDS[1], (2**40, jpeg(8, 9, 4), 9, 8)])
    assert other != ImageStore.open(path).fingerprint


def test_pieces_of_any_size(path, tmp_path):
    rows = sorted(RECORDS)
    data = b"".join(row[1] for row in rows)
    create_images(
        tmp_path / "pieces.h5",
        [r[0] for r in rows],
        [r[2:] for r in rows],
        [len(r[1]) for r in rows],
        (data[i : i + 7] for i in range(0, len(data), 7)),
    )
    assert (tmp_path / "pieces.h5").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("change", ["short", "long"])
def test_data_of_another_length_is_refused(tmp_path, change):
    data = b"x" * (9 if change == "short" else 11)
    with pytest.raises(ValueError, match="10"):
        create_images(tmp_path / "a.h5", [1], [(1, 1)], [10], [data])


@pytest.mark.parametrize("records", [[], [(1, b"", 1, 1)], [(1, b"a", 1, 1), (1, b"b", 1, 1)]])
def test_impossible_records_are_refused(tmp_path, records):
    with pytest.raises(ValueError):
        write_images(tmp_path / "a.h5", records)


def test_missing_id_is_named(path):
    with pytest.raises(CaptionerError, match="no image with image id 4 .*1 of 2"):
        ImageStore.open(path).rows([3, 4])


def test_row_outside(path):
    for row in (-1, 3):
        with pytest.raises(IndexError):
            ImageStore.open(path).jpeg(row)


def _third(store):
    return store.jpeg(2)


def test_across_processes(path):
    store = ImageStore.open(path)
    store.jpeg(0)  # opens the file
    assert pickle.loads(pickle.dumps(store)).jpeg(2) == RECORDS[2][1]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_third, [store] * 4) == [RECORDS[2][1]] * 4


def test_read_only_file(path):
    os.chmod(path, 0o444)
    assert len(ImageStore.open(path)) == 3


def test_verify_finds_nothing_in_a_sound_file(path):
    assert verify_images(path) == []


def test_verify_finds_a_changed_byte(path):
    store = ImageStore.open(path)
    with open(path, "r+b") as file:
        file.seek(store._start + 100)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 255]))
    assert any("fingerprint" in problem for problem in verify_images(path))


def test_verify_names_an_image_that_does_not_decode_and_one_of_another_size(tmp_path):
    write_images(tmp_path / "a.h5", [(1, jpeg()[:200], 30, 40), (2, jpeg(), 31, 40), (3, jpeg(), 30, 40)])
    problems = verify_images(tmp_path / "a.h5")
    assert len(problems) == 2
    assert "image 1 (row 0)" in problems[0] and "image 2 (row 1)" in problems[1] and "40x30" in problems[1]


@pytest.mark.parametrize("size", [0, 100, 600, 2500, -1])
def test_truncated_file(path, size):
    length = path.stat().st_size
    os.truncate(path, size if size >= 0 else length - 1)
    with pytest.raises(CaptionerError, match="images.h5: .*create it again"):
        ImageStore.open(path)
    assert len(verify_images(path)) == 1


def test_bad_files(tmp_path):
    with pytest.raises(CaptionerError, match="not found; run the download stage"):
        ImageStore.open(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(CaptionerError, match="text.h5: cannot be read as an images file"):
        ImageStore.open(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = [1]
    with pytest.raises(CaptionerError, match="other.h5: not an images file"):
        ImageStore.open(tmp_path / "other.h5")


@pytest.mark.parametrize(
    "name, values",
    [("offset", [0, 5, 4, 10]), ("offset", [0, 1, 2, 3]), ("image_id", [3, 3, 4]), ("offset", [1, 2, 3, 10])],
)
def test_inconsistent_index(path, name, values):
    with h5py.File(path, "r+") as file:
        file[name][...] = values
    with pytest.raises(CaptionerError, match="do not increase"):
        ImageStore.open(path)


def test_another_format_version(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(CaptionerError, match="format version 2"):
        ImageStore.open(path)


def test_writing_and_fingerprinting_need_little_memory(tmp_path):
    """100 MB of images within 20 MB of objects."""
    piece, count = bytes(1_000_000), 100
    tracemalloc.start()
    try:
        create_images(
            tmp_path / "a.h5",
            np.arange(count),
            np.ones((count, 2)),
            np.full(count, len(piece)),
            (piece[:] for _ in range(count)),
        )
        store = ImageStore.open(tmp_path / "a.h5")
        assert store.content_fingerprint() == store.fingerprint
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
