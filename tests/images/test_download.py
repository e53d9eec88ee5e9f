"""The whole download stage: the effect of each parameter, and what must not change the bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.images import blocks
from captioner.images.captions import SPLITS, CaptionSet
from captioner.images.store import ImageStore
from captioner.images.verify import verify_images
from captioner.parameters import DownloadParameters, RuntimeParameters
from captioner.sidecar import Sidecar
from tests.images.making import coco_set, custom_set, hashes, jpeg, run, skipped


def sizes(folder):
    captions = CaptionSet.load(folder / "captions.json")
    return [len(captions.image_ids(split)) for split in SPLITS]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return custom_set(tmp_path_factory.mktemp("own"), 40, ("train", "train", "test", ""))


# ---- one test a parameter; the last of them sees that none is forgotten

EFFECTS = {}


def effect(function):
    EFFECTS[function.__name__.removeprefix("test_effect_of_")] = function
    return function


@effect
def test_effect_of_scenes(tmp_path):
    assert sizes(run(tmp_path / "a", "scenes", scenes=24)) == [20, 2, 2]
    assert sizes(run(tmp_path / "b", "scenes", scenes=36)) == [30, 3, 3]


@effect
def test_effect_of_seed(tmp_path, table):
    a, b = (
        ImageStore.open(run(tmp_path / f"s{seed}", "scenes", scenes=20, seed=seed) / "images.h5") for seed in (1, 2)
    )
    assert a.fingerprint != b.fingerprint
    a, b = (
        CaptionSet.load(run(tmp_path / f"c{seed}", captions=table, seed=seed) / "captions.json").image_ids("val")
        for seed in (1, 2)
    )
    assert len(a) == len(b) and a != b


@effect
def test_effect_of_root(tmp_path, table):
    away = tmp_path / "away"
    away.mkdir()
    shutil.copy(table, away / "table.csv")
    with pytest.raises(CaptionerError, match="are not there"):
        run(tmp_path / "out", captions=away / "table.csv")
    assert sizes(run(tmp_path / "out", captions=away / "table.csv", root=table.parent)) == sizes(
        run(tmp_path / "b", captions=table)
    )


@effect
def test_effect_of_captions(tmp_path, table):
    other = custom_set(tmp_path / "other", 7, ("train",))
    assert (
        sum(sizes(run(tmp_path / "a", captions=table))) == 40 and sum(sizes(run(tmp_path / "b", captions=other))) == 7
    )


@effect
def test_effect_of_from_(tmp_path, monkeypatch):
    """Which of the two network sources is used; test_coco.py checks their results."""
    asked = []

    def fetch(url, *_, **__):
        asked.append(url)
        raise CaptionerError("no network")

    monkeypatch.setattr("captioner.images.fetch.fetch", fetch)
    monkeypatch.setattr(
        "captioner.images.fetch.fetch_many", lambda urls, **_: asked.append(urls[0]) or (item for item in ())
    )
    for source in ("archives", "urls"):
        with pytest.raises(CaptionerError, match="no network"):
            run(tmp_path / "out", "coco2017", from_=source)
    assert asked == ["http://images.cocodataset.org/annotations/annotations_trainval2017.zip"] * 2
    root = coco_set(tmp_path / "coco")
    shutil.rmtree(root / "val2017")
    assert sizes(run(tmp_path / "a", "coco2017", root=root, from_="archives"))[2] == 0
    with pytest.raises(CaptionerError):
        run(tmp_path / "b", "coco2017", root=root, from_="urls")
    assert asked[-1] == "http://localhost/val2017/000000000501.jpg"


@effect
def test_effect_of_split(tmp_path, table):
    content = {
        "images": [
            {"filename": f"{n:03d}.jpg", "split": "test" if n < 10 else "val" if n < 20 else "train"} for n in range(40)
        ]
    }
    (tmp_path / "k.json").write_text(json.dumps(content))
    assert sizes(run(tmp_path / "a", captions=table, split=tmp_path / "k.json")) == [20, 10, 10]
    assert sizes(run(tmp_path / "b", captions=table, split="own")) == [26, 4, 10]


@effect
def test_effect_of_limit(tmp_path, table):
    out = run(tmp_path / "a", captions=table, limit=3)
    assert sizes(out) == [3, 3, 3]
    assert CaptionSet.load(out / "captions.json").image_ids("test") == [3, 7, 11]
    assert skipped(out) == {}


@effect
def test_effect_of_image_size(tmp_path, table):
    assert ImageStore.open(run(tmp_path / "a", captions=table) / "images.h5").sizes[0].tolist() == [30, 40]
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "a.jpg").write_bytes(jpeg(400, 300))
    (tmp_path / "big" / "t.csv").write_text("image,caption\na.jpg,x\n")
    for size, expected in ((256, [256, 341]), (64, [64, 85]), (512, [300, 400])):
        assert (
            ImageStore.open(
                run(tmp_path / f"s{size}", captions=tmp_path / "big" / "t.csv", image_size=size) / "images.h5"
            )
            .sizes[0]
            .tolist()
            == expected
        )


@effect
def test_effect_of_jpeg_quality(tmp_path):
    a, b = (
        os.path.getsize(run(tmp_path / str(q), "scenes", scenes=20, jpeg_quality=q) / "images.h5") for q in (40, 90)
    )
    assert a < 0.7 * b


@effect
def test_effect_of_max_missing(tmp_path):
    path = custom_set(tmp_path / "own", 10)
    (tmp_path / "own" / "000.jpg").unlink()
    with pytest.raises(CaptionerError, match="max_missing"):
        run(tmp_path / "out", captions=path, max_missing=0.09)
    assert sum(sizes(run(tmp_path / "out", captions=path, max_missing=0.1))) == 9


@effect
def test_effect_of_test_share(tmp_path, table):
    assert sizes(run(tmp_path / "a", captions=table, test_share=0.3))[2] == 3


@effect
def test_effect_of_val_share(tmp_path, table):
    assert sizes(run(tmp_path / "a", captions=table, val_share=0.5)) == [15, 15, 10]
    assert sizes(run(tmp_path / "b", captions=table, val_share=0)) == [30, 0, 10]


@effect
def test_effect_of_version(tmp_path, table, capfd):
    """Unfinished work of another version is not resumed."""

    def stop(self, number, sources):
        if number == 1:
            raise KeyboardInterrupt
        return original(self, number, sources)

    original = blocks.BlockMaker.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 16)
        patch.setattr(blocks.BlockMaker, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", captions=table, version=1)
        patch.setattr(blocks.BlockMaker, "__call__", original)
        capfd.readouterr()
        run(tmp_path / "out", captions=table, version=2)
        assert "unfinished work was for other version; starting afresh" in capfd.readouterr().err


def test_every_parameter_has_a_test():
    assert set(EFFECTS) == {field.name for field in dataclasses.fields(DownloadParameters)}


def test_network_parameters_reach_the_fetcher(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "captioner.images.fetch.fetch_many", lambda urls, **options: seen.update(options) or (item for item in ())
    )
    root = coco_set(tmp_path / "coco")
    (root / "train2017" / "000000000003.jpg").unlink()
    with pytest.raises(CaptionerError):
        run(
            tmp_path / "out",
            "coco2017",
            RuntimeParameters(workers=1, retries=7, timeout=2.5, connections=3),
            root=root,
            from_="urls",
        )
    assert seen == {"retries": 7, "timeout": 2.5, "connections": 3}

    def fetch(url, target, **options):
        seen.update(options, target=target)
        raise CaptionerError("enough")

    monkeypatch.setattr("captioner.images.fetch.fetch", fetch)
    with pytest.raises(CaptionerError, match="enough"):
        run(
            tmp_path / "out",
            "coco2014",
            RuntimeParameters(workers=1, retries=7, timeout=2.5, download_cache=str(tmp_path / "cache")),
        )
    assert (seen["retries"], seen["timeout"], seen["size"], seen["md5"]) == (
        7,
        2.5,
        252872794,
        "0a379cfc70b0e71301e0f377548639bd",
    )
    assert seen["target"] == tmp_path / "cache" / "annotations_trainval2014.zip"


# ---- what must not change the bytes


@pytest.mark.parametrize("block", [7, 16, 128])
def test_blocks_do_not_change_the_bytes(tmp_path, table, monkeypatch, block):
    expected = hashes(run(tmp_path / "a", captions=table))
    monkeypatch.setattr(blocks, "BLOCK", block)
    assert hashes(run(tmp_path / "b", captions=table)) == expected


def test_the_number_of_workers_does_not_change_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    outs = [
        hashes(run(tmp_path / str(workers), "scenes", RuntimeParameters(workers=workers), scenes=40))
        for workers in (1, 2, 3)
    ]
    assert outs[0] == outs[1] == outs[2]


def test_a_second_run_replaces_read_only_outs(tmp_path, table):
    """DVC links outs read-only."""
    first = hashes(run(tmp_path / "out", captions=table))
    for path in (tmp_path / "out").iterdir():
        path.chmod(0o444)
    assert hashes(run(tmp_path / "out", captions=table)) == first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["captions.json", "images.h5", "skipped.csv"]


def test_an_edited_table_is_a_new_result(tmp_path, table):
    first = hashes(run(tmp_path / "a", captions=table))
    edited = tmp_path / "edited.csv"
    edited.write_text(table.read_text().replace("a picture number 5", "a photo of five"))
    second = hashes(run(tmp_path / "b", captions=edited, root=table.parent))
    assert first["images.h5"] == second["images.h5"] and first["captions.json"] != second["captions.json"]


def test_outs_fit_together_and_verify(tmp_path, table):
    out = run(tmp_path / "out", captions=table)
    store, content = ImageStore.open(out / "images.h5"), json.loads((out / "captions.json").read_text())
    assert verify_images(out / "images.h5") == []
    assert [image["id"] for image in content["images"]] == store.image_ids.tolist()
    assert [[image["height"], image["width"]] for image in content["images"]] == store.sizes.tolist()
    assert [annotation["id"] for annotation in content["annotations"]] == list(range(1, 81))
    assert content["info"]["dataset"] == "custom"


def test_scene_captions_belong_to_their_scenes(tmp_path):
    from captioner.images.scenes import captions, describe, draw

    out = run(tmp_path / "out", "scenes", scenes=20, seed=4, jpeg_quality=100)
    store, texts = ImageStore.open(out / "images.h5"), CaptionSet.load(out / "captions.json")
    for index in (0, 19):
        assert (
            texts.captions(index) == captions(describe(4, index)) and texts.file_name(index) == f"scene-{index:06d}.jpg"
        )
        error = np.asarray(store.image(index), dtype=int) - np.asarray(draw(describe(4, index)), dtype=int)
        assert np.abs(error).mean() < 3


def test_no_training_image(tmp_path):
    path = custom_set(tmp_path / "own", 4, ("test",))
    with pytest.raises(CaptionerError, match="table.csv: no image with captions is in the training split"):
        run(tmp_path / "out", captions=path)


def test_a_second_process_is_refused(tmp_path, table):
    message = f"images.h5.partial: process {os.getpid()} is at work on it"
    with Sidecar(tmp_path / "out" / "images.h5", {}), pytest.raises(CaptionerError, match=message):
        run(tmp_path / "out", captions=table)
