"""COCO: folders, zips, URLs, complete and partial copies, and invalid annotations."""

from __future__ import annotations

import json
import re
import shutil
import zipfile

import pytest

from captioner.errors import CaptionerError
from captioner.images import fetch_many as fetching
from captioner.images.captions import CaptionSet
from captioner.images.datasets.coco import read_coco
from captioner.images.manifests import read_manifest
from captioner.images.records import Absent, UrlSource, ZipSource
from captioner.images.store import ImageStore
from captioner.parameters import RuntimeParameters
from tests.data import real_data
from tests.images.making import SOURCES, coco_json, coco_set, hashes, run, skipped

MANIFEST = read_manifest("coco2017", SOURCES)


def nothing(archive):
    raise AssertionError(f"fetched {archive.url}")


def listed(root, from_urls=False):
    return read_coco(MANIFEST, root, from_urls, nothing)


@pytest.fixture
def root(tmp_path):
    return coco_set(tmp_path / "coco")


def annotations(root, part="train2017"):
    return root / "annotations" / f"captions_{part}.json"


def zipped(root, target, annotations_too=True):
    """The same copy as the official archives."""
    target.mkdir()
    for part in ("train2017", "val2017"):
        with zipfile.ZipFile(
            target / f"{part}.zip", "w", zipfile.ZIP_STORED if part == "val2017" else zipfile.ZIP_DEFLATED
        ) as archive:
            archive.mkdir(part)
            for path in sorted((root / part).iterdir()):
                archive.write(path, f"{part}/{path.name}")
    if annotations_too:
        with zipfile.ZipFile(target / "annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in (root / "annotations").iterdir():
                archive.write(path, f"annotations/{path.name}")
    return target


def test_folders(root):
    listing = listed(root)
    assert [(r.image_id, r.split) for r in listing.records] == [(n, "train") for n in range(1, 9)] + [
        (n, "test") for n in range(501, 505)
    ]
    assert listing.records[0].captions == ("Caption 0 of 1.", "Caption 1 of 1.") and listing.skipped == []


def test_zips_give_the_same_bytes_as_folders(root, tmp_path):
    assert hashes(run(tmp_path / "b", "coco2017", root=zipped(root, tmp_path / "zips"))) == hashes(
        run(tmp_path / "a", "coco2017", root=root)
    )


def test_images_in_a_folder_between(root, tmp_path):
    (root / "images").mkdir()
    for part in ("train2017", "val2017"):
        shutil.move(root / part, root / "images" / part)
    assert len(listed(root).records) == 12


def test_archives_over_the_network(root, tmp_path):
    zips = zipped(root, tmp_path / "zips")
    asked = []

    def fetch(archive):
        asked.append(archive.name)
        return zips / archive.name

    listing = read_coco(MANIFEST, None, False, fetch)
    assert len(listing.records) == 12 and all(isinstance(r.source, ZipSource) for r in listing.records)
    assert set(asked) == {"annotations_trainval2017.zip", "train2017.zip", "val2017.zip"}


def test_archives_in_the_download_cache_are_used(root, tmp_path):
    """The whole stage, with the sizes and checksums of a test manifest."""
    zips = zipped(root, tmp_path / "cache")
    sources = tmp_path / "sources"
    sources.mkdir()
    text = (SOURCES / "coco2017.yaml").read_text()
    for name in ("train2017.zip", "val2017.zip", "annotations_trainval2017.zip"):
        text = re.sub(rf'(/{name}"), size: \d+, md5: \w+', rf"\1, size: {(zips / name).stat().st_size}", text)
    (sources / "coco2017.yaml").write_text(text)
    out = run(tmp_path / "out", "coco2017", RuntimeParameters(workers=1, download_cache=str(zips)), sources)
    assert hashes(out) == hashes(run(tmp_path / "a", "coco2017", root=root))


def test_partial_copy_of_parts(root, tmp_path):
    shutil.rmtree(root / "train2017")
    (root / "annotations" / "captions_train2017.json").unlink()
    listing = listed(root)
    assert (
        len(listing.records) == 4
        and ("train2017", "whole part left out: no annotations/captions_train2017.json in this copy") in listing.skipped
    )
    shutil.rmtree(root / "val2017")
    with pytest.raises(CaptionerError, match="no part of coco2017 with annotations and images .*val2017: no images"):
        listed(root)


def test_partial_copy_of_images(root, tmp_path):
    for number in (2, 3):
        (root / "train2017" / f"{number:012d}.jpg").unlink()
    with pytest.raises(CaptionerError, match="2 of 12 listed images are not there .*max_missing=0.167"):
        run(tmp_path / "out", "coco2017", root=root)
    out = run(tmp_path / "out", "coco2017", root=root, max_missing=0.167)
    assert skipped(out) == {f"{n:012d}.jpg": "not in train2017" for n in (2, 3)}


def test_images_without_captions_and_captions_without_images(root):
    content = coco_json({n: f"{n:012d}.jpg" for n in range(1, 8)})
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 5] + [
        {"id": 1, "image_id": 99, "caption": "x"},
        {"id": 2, "image_id": 1, "caption": " \n"},
    ]
    annotations(root).write_text(json.dumps(content))
    listing = listed(root)
    assert listing.uncaptioned == 1 and len(listing.records) == 6 + 4
    assert set(listing.skipped) == {
        ("000000000005.jpg", "no captions"),
        ("train2017/000000000008.jpg", "no captions"),
        ("image id 99", "a caption for an image that the annotations do not list"),
        ("000000000001.jpg", "caption 2 is empty"),
    }


def test_duplicate_ids(root):
    content = coco_json({1: "000000000001.jpg"})
    content["images"].append(dict(content["images"][0]))
    annotations(root).write_text(json.dumps(content))
    assert ("000000000001.jpg", "image id 1 is listed twice; the first counts") in listed(root).skipped
    content["images"][1]["file_name"] = "000000000002.jpg"
    annotations(root).write_text(json.dumps(content))
    with pytest.raises(CaptionerError, match="image id 1 is used for 000000000001.jpg and for 000000000002.jpg"):
        listed(root)


def test_image_of_two_parts_is_for_the_test(root):
    content = coco_json({501: "000000000501.jpg", 1: "000000000001.jpg"})
    annotations(root).write_text(json.dumps(content))
    assert [(r.image_id, r.split) for r in listed(root).records][:2] == [(1, "train"), (501, "test")]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ('{"images": []}', "not a COCO captions file"),
        ('{"images": [1], "annotations": []}', "not a COCO captions file"),
        ('{"images": [{"id": "1", "file_name": "a"}], "annotations": []}', "id '1'"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 3, "image_id": 1, "bbox": []}]}',
            "annotation 3 has no 'caption'",
        ),
        (
            '{"images": [{"id": 1, "file_name": "../a.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
            "outside its folder",
        ),
        (
            '{"images": [{"id": 1, "file_name": "/etc/passwd"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
            "outside its folder",
        ),
    ],
)
def test_json_that_is_no_captions(root, text, message):
    annotations(root).write_text(text)
    with pytest.raises(CaptionerError, match=f"captions_train2017.json.*{message}"):
        listed(root)


def test_zip_with_paths_that_leave_it(root, tmp_path):
    zips = zipped(root, tmp_path / "zips")
    with zipfile.ZipFile(zips / "train2017.zip", "a") as archive:
        archive.writestr("../evil.jpg", b"x")
        archive.writestr("/tmp/evil2.jpg", b"x")
        archive.writestr("train2017/../../evil3.jpg", b"x")
        archive.writestr("__MACOSX/train2017/._000000000001.jpg", b"x")
    content = coco_json(
        {n: f"{n:012d}.jpg" for n in range(1, 9)} | {600: "evil.jpg", 601: "evil2.jpg", 602: "evil3.jpg"}
    )
    with zipfile.ZipFile(zips / "annotations_trainval2017.zip", "w") as archive:
        archive.writestr("annotations/captions_train2017.json", json.dumps(content))
    sources = {r.image_id: r.source for r in listed(zips).records}
    assert all(isinstance(sources[number], Absent) for number in (600, 601, 602)) and isinstance(sources[1], ZipSource)
    out = run(tmp_path / "out", "coco2017", root=zips, max_missing=0.5)
    assert len(ImageStore.open(out / "images.h5")) == 8
    assert not list(tmp_path.rglob("evil*"))


def test_damaged_zip(root, tmp_path):
    zips = zipped(root, tmp_path / "zips")
    with zipfile.ZipFile(zips / "val2017.zip") as archive:
        offset = archive.getinfo("val2017/000000000501.jpg").header_offset
    with open(zips / "val2017.zip", "r+b") as file:
        file.seek(offset + 150)
        file.write(b"damage")
    assert skipped(run(tmp_path / "out", "coco2017", root=zips, max_missing=0.1)) == {
        "000000000501.jpg": "the zip archive is damaged here"
    }
    data = (zips / "train2017.zip").read_bytes()
    (zips / "train2017.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        CaptionerError, match="train2017.zip: cannot be read as a zip archive .*delete it and download it again"
    ):
        run(tmp_path / "out", "coco2017", root=zips)


def served(monkeypatch, root, dead=(), order=reversed):
    """Replaces the network: results come in another order than requested, ``dead`` names fail."""
    asked = []

    def fetch_many(urls, *, connections, retries, timeout):
        asked.extend(urls)
        for index in order(range(len(urls))):
            part, name = urls[index].split("/")[-2:]
            yield index, fetching.FetchFailure("404 Not Found") if name in dead else (root / part / name).read_bytes()

    monkeypatch.setattr("captioner.images.fetch.fetch_many", fetch_many)
    return asked


def test_urls_give_the_same_bytes(root, tmp_path, monkeypatch):
    away = tmp_path / "away"
    shutil.copytree(root / "annotations", away / "annotations")
    asked = served(monkeypatch, root)
    out = run(tmp_path / "out", "coco2017", root=away, from_="urls")
    assert hashes(out)["images.h5"] == hashes(run(tmp_path / "a", "coco2017", root=root))["images.h5"]
    assert len(asked) == 12


def test_urls_complete_a_partial_copy(root, tmp_path, monkeypatch):
    partial = tmp_path / "partial"
    shutil.copytree(root, partial)
    (partial / "train2017" / "000000000003.jpg").unlink()
    asked = served(monkeypatch, root)
    run(tmp_path / "out", "coco2017", root=partial, from_="urls")
    assert asked == ["http://localhost/train2017/000000000003.jpg"]


def test_dead_urls_are_listed_and_too_many_are_tried_again(root, tmp_path, monkeypatch):
    shutil.copytree(root / "annotations", tmp_path / "away" / "annotations")
    served(monkeypatch, root, dead=("000000000003.jpg",))
    with pytest.raises(
        CaptionerError, match="1 of 12 listed images could not be fetched .*000000000003.jpg: 404 Not Found"
    ):
        run(tmp_path / "out", "coco2017", root=tmp_path / "away", from_="urls")
    out = run(tmp_path / "out", "coco2017", root=tmp_path / "away", from_="urls", max_missing=0.1)
    assert skipped(out) == {"000000000003.jpg": "not fetched: 404 Not Found"}


def test_annotations_without_url(root, tmp_path):
    content = coco_json({1: "000000000001.jpg", 2: "000000000002.jpg"})
    content["images"][0]["coco_url"] = "file:///etc/passwd"
    annotations(root).write_text(json.dumps(content))
    shutil.rmtree(root / "train2017")
    sources = [r.source for r in listed(root, from_urls=True).records]
    assert isinstance(sources[0], Absent) and isinstance(sources[1], UrlSource)


def test_real_coco(tmp_path):
    root = real_data("coco_mini")
    out = run(tmp_path / "out", "coco2017", root=root)
    captions, store = CaptionSet.load(out / "captions.json"), ImageStore.open(out / "images.h5")
    assert [len(captions.image_ids(split)) for split in ("train", "val", "test")] == [68, 12, 40]
    assert len(store) == 120
    for part in ("train2017", "val2017"):
        content = json.loads((root / "annotations" / f"captions_{part}.json").read_text())
        for image in content["images"]:
            scale = min(1, 256 / min(image["height"], image["width"]))
            assert tuple(store.sizes[store.rows([image["id"]])[0]]) == (
                round(image["height"] * scale),
                round(image["width"] * scale),
            )
            assert captions.captions(image["id"]) == [
                " ".join(a["caption"].split()) for a in content["annotations"] if a["image_id"] == image["id"]
            ]
