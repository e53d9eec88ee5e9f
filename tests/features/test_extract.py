"""Extraction: its result, its parameters, its faults."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.features import blocks
from captioner.features.encoders import build_encoder
from captioner.features.extract import extract
from captioner.features.preprocess import Preprocessing, square
from captioner.features.store import FeatureStore
from captioner.features.verify import verify_features
from captioner.images.store import ImageStore, create_images
from captioner.parameters import ExtractParameters
from tests.features.conftest import ENCODER, program, quick, run, runtime


def test_features_are_those_of_the_encoder_on_each_view(images: Path, plain: Path) -> None:
    store, stored = FeatureStore.open(plain), ImageStore.open(images)
    assert (
        store.shape == (21, 3, 9, 512)
        and store.image_ids.tolist() == list(range(1000, 1063, 3))
        and store.grid == (3, 3)
    )
    encoder = build_encoder(ENCODER, seed=1)
    mean, std = torch.tensor(store.preprocessing["mean"]), torch.tensor(store.preprocessing["std"])
    reader = store.reader()
    for row, view in ((0, 0), (10, 1), (20, 2)):
        pixels = square(stored.image(row), Preprocessing(image_size=64), int(store.image_ids[row]), view)
        with torch.inference_mode():
            expected = encoder(((torch.tensor(pixels.copy()) / 255 - mean) / std).permute(2, 0, 1)[None])[0]
        torch.testing.assert_close(reader.read([row], [view])[0].float(), expected, rtol=2e-3, atol=1e-3)
    assert verify_features(plain) == []
    assert (
        store.images_fingerprint == stored.fingerprint
        and store.weights_name == "random"
        and store.facts["precision"] == "fp32"
    )
    assert not plain.with_name("plain.h5.partial").exists()


def test_blocks_and_their_grouping_into_processes() -> None:
    done = np.zeros(21, bool)
    assert blocks.blocks_to_do(done, 8, 0, 1) == [(0, 8), (8, 8), (16, 5)]
    assert blocks.blocks_to_do(done, 8, 0, 2) == [(0, 8), (16, 5)] and blocks.blocks_to_do(done, 8, 1, 2) == [(8, 8)]
    done[8:16] = True
    done[16:20] = True  # a block is done when all of it is
    assert blocks.blocks_to_do(done, 8, 0, 1) == [(0, 8), (16, 5)] and blocks.blocks_to_do(done, 8, 1, 2) == []


@pytest.mark.parametrize("way", ["processes", "torchrun"])
def test_two_processes_write_the_bytes_of_one(images: Path, plain: Path, tmp_path: Path, way: str) -> None:
    launcher = (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        if way == "torchrun"
        else None
    )
    command, environment = program(
        images, tmp_path / "two.h5", views=3, launcher=launcher, runtime={"processes": 2} if way == "processes" else {}
    )
    finished = run(command, environment)
    assert finished.returncode == 0, finished.stderr
    assert "process 2 of 2" in finished.stderr
    assert (tmp_path / "two.h5").read_bytes() == plain.read_bytes()


def test_threads_and_workers_change_no_byte(images: Path, plain: Path, tmp_path: Path) -> None:
    extract(quick(views=3), runtime(threads=2, workers=3), ENCODER, images, tmp_path / "threads.h5")
    assert (tmp_path / "threads.h5").read_bytes() == plain.read_bytes()


def test_how_the_images_were_stored_is_passed_on(images: Path, plain: Path, tmp_path: Path) -> None:
    assert FeatureStore.open(plain).image_size is None and FeatureStore.open(plain).weights_seed == 1
    stored = ImageStore.open(images)
    lengths = np.array([len(stored.jpeg(row)) for row in range(len(stored))])
    jpegs = (stored.jpeg(row) for row in range(len(stored)))
    create_images(tmp_path / "images.h5", stored.image_ids, stored.sizes, lengths, jpegs, 64, 95)
    extract(quick(seed=3), runtime(), ENCODER, tmp_path / "images.h5", tmp_path / "f.h5")
    store = FeatureStore.open(tmp_path / "f.h5")
    assert (store.weights_seed, store.image_size, store.jpeg_quality) == (3, 64, 95)
    assert store.images_fingerprint == stored.fingerprint
    extract(quick(seed=3), runtime(), ENCODER, images, tmp_path / "old.h5")
    assert FeatureStore.open(tmp_path / "old.h5").fingerprint == store.fingerprint


CHANGES = {
    "seed": 2,
    "weights": "file",
    "fit": "crop",
    "grid": 2,
    "views": 3,
    "precision": "bf16",
    "hflip": 1.0,
    "vflip": 1.0,
    "crop": "centre",
    "crop_scale": 0.9,
    "image_size": 96,
    "crop_pct": 0.8,
}


@pytest.fixture(scope="module")
def two_views(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    out = tmp_path_factory.mktemp("features") / "two.h5"
    extract(quick(views=2), runtime(), ENCODER, images, out)
    return FeatureStore.open(out)


@pytest.mark.parametrize("field", CHANGES)
def test_each_parameter_has_its_effect(images: Path, tmp_path: Path, two_views: FeatureStore, field: str) -> None:
    value = CHANGES[field]
    if field == "weights":
        torch.save(build_encoder(ENCODER, seed=9).body.state_dict(), tmp_path / "weights.pth")
        value = str(tmp_path / "weights.pth")
    extract(quick(**{"views": 2, field: value}), runtime(), ENCODER, images, tmp_path / "other.h5")
    other = FeatureStore.open(tmp_path / "other.h5")
    assert other.fingerprint != two_views.fingerprint
    assert "weights.pth" not in str(other.facts)  # no path is recorded
    if other.shape != two_views.shape:
        assert {"grid": (21, 2, 4, 512), "views": (21, 3, 9, 512), "image_size": (21, 2, 25, 512)}[field] == other.shape
        return
    ours, theirs = (store.reader().read(np.arange(21), np.ones(21, int)) for store in (two_views, other))
    assert not torch.equal(ours, theirs)
    plain_same = torch.equal(two_views.reader().read(np.arange(21)), other.reader().read(np.arange(21)))
    assert plain_same == (
        field in ("hflip", "vflip", "crop", "crop_scale")
    )  # the plain view knows nothing of augmentation


def test_version_and_block_size_make_another_file(images: Path, tmp_path: Path, two_views: FeatureStore) -> None:
    for number, change in enumerate(({"version": 3}, {"batch_size": 5})):
        extract(quick(**{"views": 2, **change}), runtime(), ENCODER, images, tmp_path / f"{number}.h5")
        assert FeatureStore.open(tmp_path / f"{number}.h5").fingerprint != two_views.fingerprint
    # layer is for timm's encoders: test_timm.py
    assert {*CHANGES, "version", "batch_size", "layer"} == {field.name for field in fields(ExtractParameters)}


def test_without_views_their_parameters_are_no_part_of_the_fingerprint(images: Path, tmp_path: Path) -> None:
    for name, hflip in (("a", 0.1), ("b", 0.9)):
        extract(quick(hflip=hflip), runtime(), ENCODER, images, tmp_path / f"{name}.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_bits_differ_with_the_batch_but_hardly(images: Path, plain: Path, tmp_path: Path) -> None:
    extract(quick(views=3, batch_size=1), runtime(), ENCODER, images, tmp_path / "one.h5")
    one, eight = (FeatureStore.open(path).reader().read(np.arange(21)).float() for path in (tmp_path / "one.h5", plain))
    torch.testing.assert_close(one, eight, rtol=2e-3, atol=1e-3)


# (row, view, position, channel): value, with torch 2.13 on an x86-64 processor with AVX-512
PINNED = {
    (0, 0, 4, 100): 1.796875,
    (5, 1, 4, 100): 1.0078125,
    (5, 2, 4, 100): 2.0078125,
    (0, 0, 0, 17): 5.25,
    (2, 0, 8, 511): 0.0,
    (9, 2, 7, 128): 0.0,
}


def test_pinned_features(plain: Path) -> None:
    """Some features of some images. If they change on purpose, raise extract.version, or stale features will be taken
    for fresh ones.

    Processors and versions of libjpeg differ in the last bits, so two units in float16's last place are allowed.
    """
    reader = FeatureStore.open(plain).reader()
    for (row, view, position, channel), value in PINNED.items():
        found = float(reader.read([row], [view])[0, position, channel])
        assert abs(found - value) <= 2 * float(np.spacing(np.float16(value))), (
            f"row {row}: {found}, not {value}: raise extract.version"
        )
