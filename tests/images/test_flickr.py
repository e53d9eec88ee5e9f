"""Flickr8k and Flickr30k in both layouts: small copies with the irregularities of the real files."""

from __future__ import annotations

import pytest

from captioner.errors import CaptionerError
from captioner.images.captions import CaptionSet
from captioner.images.datasets.flickr import read_flickr
from captioner.images.manifests import read_manifest
from captioner.images.store import ImageStore
from tests.data import real_data
from tests.images.making import SOURCES, jpeg, run, skipped

NAMES = [f"{1000 + number}_{number:04x}.jpg" for number in range(8)]


def manifest(name):
    return read_manifest(name, SOURCES)


def images(folder, names=NAMES):
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(jpeg(seed=number))


@pytest.fixture(params=["Flicker8k_Dataset", "Flickr8k_Dataset"])
def official(request, tmp_path):
    images(tmp_path / request.param)
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    lines = [f"{name}#{k}\tCaption {k} , of {name} ." for name in NAMES for k in range(2)]
    lines.append("2258277193_586949ec62.jpg.1#0\tsome people run .")
    (text / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for split, names in (("train", NAMES[:4]), ("dev", NAMES[4:6]), ("test", NAMES[6:7])):
        (text / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def test_official_layout(official):
    listing = read_flickr(manifest("flickr8k"), official)
    assert [(r.image_id, r.split) for r in listing.records] == [
        (1000 + n, s) for n, s in enumerate(["train"] * 4 + ["val"] * 2 + ["test"])
    ]
    assert listing.records[0].captions == (f"Caption 0 , of {NAMES[0]} .", f"Caption 1 , of {NAMES[0]} .")
    assert set(listing.skipped) == {
        (NAMES[7], "in none of the data set's split lists"),
        ("2258277193_586949ec62.jpg", "in none of the data set's split lists"),
    }


def test_stage(official):
    out = run(official / "out", "flickr8k", root=official)
    assert CaptionSet.load(out / "captions.json").image_ids("val") == [1004, 1005]
    assert ImageStore.open(out / "images.h5").jpeg(0) == jpeg(seed=0)


def test_image_in_two_lists(official):
    (official / "Flickr8k_text" / "Flickr_8k.testImages.txt").write_text(NAMES[0])
    with pytest.raises(CaptionerError, match=f"testImages.txt: image {NAMES[0]} is also in the list for train"):
        read_flickr(manifest("flickr8k"), official)


def test_missing_list(official):
    (official / "Flickr8k_text" / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(CaptionerError, match="Flickr_8k.devImages.txt is missing"):
        read_flickr(manifest("flickr8k"), official)


def test_stray_and_broken_lines(official):
    with open(official / "Flickr8k_text" / "Flickr8k.token.txt", "a") as file:
        file.write(f"nonsense\n{NAMES[0]}#7\t  \n\n")
    listing = read_flickr(manifest("flickr8k"), official)
    assert ("Flickr8k.token.txt, line 18", "no image and caption in this line") in listing.skipped
    assert (NAMES[0], "line 19: empty caption") in listing.skipped


def test_image_without_captions_is_listed(official):
    next(official.glob("Flick*Dataset")).joinpath("77_aa.jpg").write_bytes(jpeg())
    assert ("77_aa.jpg", "no captions") in read_flickr(manifest("flickr8k"), official).skipped


@pytest.mark.parametrize("dataset", ["flickr8k", "flickr30k"])
def test_common_layout(tmp_path, dataset):
    images(tmp_path / "Images")
    rows = [f'{NAMES[0]},"A dog, running"', f"{NAMES[0]},A dog, that nobody quoted"] + [
        f"{name},A cat" for name in NAMES[1:]
    ]
    (tmp_path / "captions.txt").write_text("image,caption\n" + "\n".join(rows) + "\n")
    listing = read_flickr(manifest(dataset), tmp_path)
    assert [r.image_id for r in listing.records] == list(range(1000, 1008)) and all(
        r.split is None for r in listing.records
    )
    assert listing.records[0].captions == ("A dog, running", "A dog, that nobody quoted")


def test_flickr30k_official_layout(tmp_path):
    names = ["1000092795.jpg", "10002456.jpg"]
    images(tmp_path / "flickr30k-images", names)
    (tmp_path / "results_20130124.token").write_text(
        "".join(f"{name}#{k}\tText {k} .\n" for name in names for k in range(5))
    )
    listing = read_flickr(manifest("flickr30k"), tmp_path)
    assert [(r.image_id, len(r.captions)) for r in listing.records] == [(10002456, 5), (1000092795, 5)]


def test_flickr30k_bars_with_the_known_malformed_row(tmp_path):
    """The published file has one row with a single bar: '2199200615.jpg| 4   A dog runs across the grass .'"""
    images(tmp_path / "flickr30k_images" / "flickr30k_images", ["2199200615.jpg"])
    (tmp_path / "results.csv").write_text(
        "image_name| comment_number| comment\n2199200615.jpg| 0| A dog | or two .\n2199200615.jpg| 4   A dog runs "
        "across the grass"
        " .\n2199200615.jpg\n"
    )
    with pytest.raises(CaptionerError, match="no captions"):
        read_flickr(manifest("flickr30k"), tmp_path / "flickr30k_images")
    listing = read_flickr(manifest("flickr30k"), tmp_path)
    assert listing.records[0].captions == ("A dog | or two .", "A dog runs across the grass .")
    assert listing.skipped == [("results.csv, line 4", "no image and caption in this line")]


def test_names_without_photo_numbers_get_positions(tmp_path):
    images(tmp_path / "Images", ["b.jpg", "a.jpg", "17_c.jpg"])
    (tmp_path / "captions.txt").write_text("image,caption\nb.jpg,x\na.jpg,y\n17_c.jpg,z\n")
    assert [(r.image_id, r.file_name) for r in read_flickr(manifest("flickr8k"), tmp_path).records] == [
        (1, "17_c.jpg"),
        (2, "a.jpg"),
        (3, "b.jpg"),
    ]


def test_errors_name_the_remedy(tmp_path):
    with pytest.raises(
        CaptionerError,
        match="dataset=flickr8k: it cannot be downloaded automatically; get it from http.* set download.root",
    ):
        read_flickr(manifest("flickr8k"), None)
    with pytest.raises(CaptionerError, match="download.root=.*gone: no such folder"):
        read_flickr(manifest("flickr8k"), tmp_path / "gone")
    with pytest.raises(CaptionerError, match="no folder of images"):
        read_flickr(manifest("flickr8k"), tmp_path)
    images(tmp_path / "Images")
    with pytest.raises(CaptionerError, match="no captions"):
        read_flickr(manifest("flickr8k"), tmp_path)
    for text, message in (
        ("", "first line is ''"),
        ("image,caption\n", "no caption found"),
        ("a,b\n1,2\n", "first line is 'a,b'"),
    ):
        (tmp_path / "captions.txt").write_text(text)
        with pytest.raises(CaptionerError, match=f"captions.txt: .*{message}"):
            read_flickr(manifest("flickr8k"), tmp_path)


def test_real_flickr8k():
    """6,000 / 500 / 500 images, five captions each, as the README of the real data says."""
    listing = read_flickr(manifest("flickr8k"), real_data("flickr8k"))
    counts = {split: sum(r.split == split for r in listing.records) for split in ("train", "val", "test")}
    assert counts == {"train": 6000, "val": 500, "test": 500}
    assert {len(r.captions) for r in listing.records} == {5} and listing.skipped == []
    assert {r.image_id: r for r in listing.records}[1000268201].captions[1] == "A girl going into a wooden building ."


def test_real_flickr8k_stage(tmp_path):
    out = run(tmp_path / "out", "flickr8k", root=real_data("flickr8k"), limit=20, image_size=128)
    store = ImageStore.open(out / "images.h5")
    assert len(store) == 60 and store.sizes.min() == 128 and skipped(out) == {}
