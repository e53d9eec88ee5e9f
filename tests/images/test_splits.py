"""Splits are by image; Karpathy's are read as published; no photograph is in two splits, even in merges."""

from __future__ import annotations

import json
import random
import zipfile
from dataclasses import replace

import pytest

from captioner.errors import CaptionerError
from captioner.images.captions import SPLITS, CaptionSet
from captioner.images.manifests import Manifest, read_manifest
from captioner.images.records import Absent, ImageRecord, Listing
from captioner.images.splits import (
    KarpathySplit,
    assign_splits,
    drop_shared_photos,
    karpathy_split,
    limit_images,
    sample_ids,
)
from tests.images.making import SOURCES, coco_set, custom_set, jpeg, run, skipped


def record(number, split=None, photo=None, name=None):
    return ImageRecord(number, name or f"{number}.jpg", ("x",), split, Absent(""), photo or f"p{number}")


def splits(records, **options):
    settings = {"karpathy": None, "coco": False, "seed": 1, "val_share": 0.15, "test_share": 1.0, **options}
    return {r.image_id: split for r, split in assign_splits(Listing(list(records)), **settings)}


def counted(result):
    return [sum(split == name for split in result.values()) for name in SPLITS]


def test_85_15_by_image():
    assert counted(splits(record(n) for n in range(1000))) == [850, 150, 0]


def test_own_splits_stand():
    own = {n: SPLITS[n % 3] for n in range(30)}
    assert splits(record(n, split) for n, split in own.items()) == own


def test_validation_is_held_out_of_training_only_where_there_is_none():
    result = splits([record(n, "test") for n in range(50)] + [record(n, "train") for n in range(50, 150)])
    assert counted(result) == [85, 15, 50] and all(result[n] == "test" for n in range(50))
    result = splits([record(1, "val")] + [record(n) for n in range(2, 100)])
    assert counted(result) == [98, 1, 0]


def test_test_share():
    result = splits(
        [record(n, "test") for n in range(200)] + [record(n, "val") for n in range(200, 210)], test_share=0.25
    )
    assert counted(result) == [0, 10, 50]
    assert counted(splits([record(n, "test") for n in range(200)], test_share=0)) == [0, 0, 0]


def test_draws_do_not_depend_on_order_and_differ_by_seed_and_purpose():
    ids = list(range(500))
    mixed = random.Random(0).sample(ids, 500)
    assert sample_ids(ids, 0.15, 1, "val") == sample_ids(mixed, 0.15, 1, "val")
    assert sample_ids(ids, 0.15, 1, "val") != sample_ids(ids, 0.15, 2, "val") != sample_ids(ids, 0.15, 2, "test")
    assert (
        len(sample_ids([1, 2, 3], 0.15, 1, "val")) == 1
        and sample_ids([1], 0.15, 1, "val") == set()
        and sample_ids(ids, 0, 1, "val") == set()
    )


def test_draws_do_not_follow_the_order_of_ids():
    chosen = sample_ids(list(range(1000)), 0.5, 1, "val")
    assert 200 < len([n for n in chosen if n < 500]) < 300


# as published (dataset_*.json of the paper's page): filename, split, imgid, sentids, sentences; COCO also filepath and
# cocoid
COCO_KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": "COCO_val2014_000000000501.jpg",
            "cocoid": 501,
            "split": "test",
            "imgid": 0,
            "sentids": [],
            "sentences": [],
        },
        {
            "filepath": "val2014",
            "filename": "COCO_val2014_000000000502.jpg",
            "cocoid": 502,
            "split": "restval",
            "imgid": 1,
            "sentids": [],
            "sentences": [],
        },
        {
            "filepath": "train2014",
            "filename": "COCO_train2014_000000000001.jpg",
            "cocoid": 1,
            "split": "train",
            "imgid": 2,
            "sentids": [],
            "sentences": [],
        },
        {
            "filepath": "train2014",
            "filename": "COCO_train2014_000000000002.jpg",
            "cocoid": 2,
            "split": "val",
            "imgid": 3,
            "sentids": [],
            "sentences": [],
        },
    ],
}


def test_karpathy_by_coco_id_and_restval_is_training(tmp_path):
    root = coco_set(tmp_path / "coco")
    (tmp_path / "dataset_coco.json").write_text(json.dumps(COCO_KARPATHY))
    out = run(tmp_path / "out", "coco2017", root=root, split=tmp_path / "dataset_coco.json")
    captions = CaptionSet.load(out / "captions.json")
    assert {split: captions.image_ids(split) for split in SPLITS} == {"train": [1, 502], "val": [2], "test": [501]}
    assert skipped(out)["000000000003.jpg"] == "not in the Karpathy split"


def test_karpathy_by_file_name():
    content = {
        "images": [{"filename": f"{n}.jpg", "split": split} for n, split in ((1, "train"), (2, "val"), (3, "test"))]
    }
    listing = Listing([record(n) for n in range(1, 5)])
    result = assign_splits(listing, KarpathySplit(content, "k"), False, 1, 0.15, 1.0)
    assert [(r.image_id, s) for r, s in result] == [(1, "train"), (2, "val"), (3, "test")]
    assert listing.skipped == [("4.jpg", "not in the Karpathy split")]


def test_karpathy_is_fetched_or_found_in_the_copy(tmp_path):
    manifest = read_manifest("flickr8k", SOURCES)
    with zipfile.ZipFile(tmp_path / "caption_datasets.zip", "w") as archive:
        archive.writestr("dataset_flickr8k.json", json.dumps({"images": [{"filename": "1.jpg", "split": "test"}]}))
    asked = []

    def fetch(archive):
        asked.append(archive)
        return tmp_path / "caption_datasets.zip"

    assert karpathy_split("karpathy", manifest, None, fetch).of(record(1), False) == "test"
    assert [archive.name for archive in asked] == ["caption_datasets.zip"] and asked[0].sha256
    assert karpathy_split("karpathy", manifest, tmp_path, None).of(record(1), False) == "test"
    assert karpathy_split(str(tmp_path), manifest, None, None).of(record(1), False) == "test"
    assert karpathy_split("own", manifest, None, None) is None


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"images": []},
        {"images": [1]},
        {"images": [{"filename": "a", "split": "dev"}]},
        {"images": [{"split": "train"}]},
    ],
)
def test_json_that_is_no_karpathy_split(tmp_path, content):
    (tmp_path / "dataset_coco.json").write_text(json.dumps(content))
    with pytest.raises(CaptionerError, match="dataset_coco.json: "):
        karpathy_split(str(tmp_path / "dataset_coco.json"), read_manifest("coco2017", SOURCES), None, None)


def test_karpathy_split_of_another_data_set(tmp_path):
    table = custom_set(tmp_path / "own", 4)
    (tmp_path / "k.json").write_text(json.dumps(COCO_KARPATHY))
    with pytest.raises(CaptionerError, match="k.json: it lists none of the 4 images of .*table.csv"):
        run(tmp_path / "out", captions=table, split=tmp_path / "k.json")
    with pytest.raises(CaptionerError, match="split=karpathy: custom has none"):
        run(tmp_path / "out", captions=table, split="karpathy")
    with pytest.raises(CaptionerError, match="split=nowhere: no such file; give own, karpathy"):
        run(tmp_path / "out", captions=table, split="nowhere")


def test_no_photograph_in_two_splits_of_a_merge():
    """Random merges: every photograph is kept exactly once, and where any data set keeps it for the test it is for the
    test."""
    rng = random.Random(1)
    order = {"train": 0, "val": 1, "test": 2}
    for _ in range(50):
        sets = []
        for name in "abc":
            numbers = rng.sample(range(40), 25)
            sets.append((name, [(record(n, photo=f"flickr {n}"), rng.choice(SPLITS)) for n in numbers]))
        kept, left_out = drop_shared_photos(sets)
        pairs = [(r.photo, split) for part in kept for r, split in part]
        assert len({photo for photo, _ in pairs}) == len(pairs) == len({r.photo for _, part in sets for r, _ in part})
        assert len(left_out) == 75 - len(pairs)
        for photo, split in pairs:
            assert order[split] == max(order[s] for _, part in sets for r, s in part if r.photo == photo)


def flickr(root, names):
    (root / "Images").mkdir(parents=True)
    for number, name in enumerate(names):
        (root / "Images" / name).write_bytes(jpeg(seed=900 + number))
    (root / "captions.txt").write_text("image,caption\n" + "".join(f"{name},A thing\n" for name in names))


def test_merge(tmp_path):
    """flickr8k+coco2017 from one root with a folder for each; COCO image 501 is one of Flickr8k's photographs."""
    flickr(tmp_path / "root" / "flickr8k", [f"{n}_ab.jpg" for n in range(1, 21)])
    root = coco_set(tmp_path / "root" / "coco2017")
    path = root / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["flickr_url"] = "http://farm4.staticflickr.com/3448/7_ba19663418_z.jpg"
    path.write_text(json.dumps(content))
    out = run(tmp_path / "out", "flickr8k+coco2017", root=tmp_path / "root")
    captions = CaptionSet.load(out / "captions.json")
    ids = [i for split in SPLITS for i in captions.image_ids(split)]
    assert sorted(ids) == [*range(1, 7), *range(8, 21), *range(1_000_001, 1_000_009), *range(1_000_501, 1_000_505)]
    assert captions.file_name(1_000_501) == "coco2017/000000000501.jpg" and captions.split_of(1_000_501) == "test"
    assert captions.file_name(1) == "flickr8k/1_ab.jpg"
    assert skipped(out) == {"flickr8k/7_ab.jpg": "the same photograph is in coco2017"}
    assert len(captions.image_ids("val")) == 3 + 1  # 15 % of each data set's training images


def test_merged_splits_are_those_of_the_parts(tmp_path):
    table = custom_set(tmp_path / "own", 40)
    root = coco_set(tmp_path / "coco", train=20)
    alone = CaptionSet.load(run(tmp_path / "a", "coco2017", root=root) / "captions.json")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "coco2017").symlink_to(root)
    (tmp_path / "both" / "custom").symlink_to(tmp_path / "own")
    merged = CaptionSet.load(
        run(tmp_path / "m", "coco2017+custom", root=tmp_path / "both", captions=table) / "captions.json"
    )
    own = CaptionSet.load(run(tmp_path / "c", captions=table) / "captions.json")
    for split in SPLITS:
        assert merged.image_ids(split) == alone.image_ids(split) + [i + 1_000_000 for i in own.image_ids(split)]


def test_limit_is_the_first_of_each_split_and_takes_merged_sets_in_turn():
    a = [(record(n), "train") for n in range(5)] + [(record(9), "val")]
    b = [(record(n), "train") for n in range(100, 103)] + [(record(n), "test") for n in range(110, 115)]
    chosen = [[r.image_id for r, _ in part] for part in limit_images([a, b], 4)]
    assert chosen == [[0, 1, 9], [100, 101, 110, 111, 112, 113]]
    assert limit_images([a], 0) == [a] and [r.image_id for r, _ in limit_images([a], 2)[0]] == [0, 1, 9]


@pytest.mark.parametrize(
    "dataset, message",
    [
        ("flickr8", "did you mean flickr8k"),
        ("coco2017+", "joined with"),
        ("custom+custom", "different data sets"),
        ("xyzzy", "known: custom, coco2014, coco2017, flickr30k, flickr8k, scenes"),
        ("glove", "there is no"),
        ("../x", "there is no"),
    ],
)
def test_unknown_data_set(tmp_path, dataset, message):
    with pytest.raises(CaptionerError, match=message):
        run(tmp_path / "out", dataset)


def test_broken_manifest(tmp_path):
    for text, message in (
        ("layout: coco\nname: x\nurls: 3", "unknown key urls"),
        ("layout: coco\nname: y", "its name is not x"),
        ("[", "cannot be read as YAML"),
        ("- 1", "not a mapping"),
        ("layout: coco\nname: x\narchives: {a: {uri: b}}", "not a valid manifest"),
    ):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(CaptionerError, match=f"x.yaml: .*{message}"):
            read_manifest("x", tmp_path)


def test_every_manifest_can_be_read():
    for path in SOURCES.glob("*.yaml"):
        if path.stem != "glove":
            manifest = read_manifest(path.stem, SOURCES)
            assert (
                isinstance(replace(manifest), Manifest)
                and manifest.licence
                and manifest.homepage.startswith("https://")
            )
