"""The captions file: validated on loading, readable by pycocotools, reproducible bytes."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import pytest

from captioner.errors import CaptionerError
from captioner.images.captions import CaptionSet, write_captions

IMAGES = [
    {"id": 5, "file_name": "ä.jpg", "split": "train", "height": 3, "width": 4},
    {"id": 9, "file_name": "b.jpg", "split": "test", "height": 3, "width": 4},
]
ANNOTATIONS = [
    {"id": 1, "image_id": 5, "caption": "ein Bär, 一只熊 \ud83d"},
    {"id": 2, "image_id": 9, "caption": "b"},
    {"id": 3, "image_id": 5, "caption": "c"},
]


@pytest.fixture
def path(tmp_path):
    write_captions(tmp_path / "captions.json", IMAGES, ANNOTATIONS, {"description": "d"})
    return tmp_path / "captions.json"


def test_round_trip(path):
    captions = CaptionSet.load(path)
    assert captions.image_ids("train") == [5] and captions.image_ids("val") == [] and captions.image_ids("test") == [9]
    assert captions.captions(5) == ["ein Bär, 一只熊 \ud83d", "c"]
    assert captions.file_name(5) == "ä.jpg" and captions.split_of(9) == "test" and len(captions) == 2
    with pytest.raises(CaptionerError, match="no image with id 6"):
        captions.captions(6)
    with pytest.raises(ValueError):
        captions.image_ids("dev")


def test_pycocotools_reads_it(path):
    coco = pytest.importorskip("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        reader = coco.COCO(str(path))
    assert reader.getImgIds() == [5, 9]
    assert [row["caption"] for row in reader.loadAnns(reader.getAnnIds(imgIds=[5]))][1] == "c"


def test_fingerprint(path, tmp_path):
    first = CaptionSet.load(path).fingerprint
    write_captions(tmp_path / "b.json", IMAGES, ANNOTATIONS, {"description": "another"})
    assert CaptionSet.load(tmp_path / "b.json").fingerprint == first
    changed = [ANNOTATIONS[0], ANNOTATIONS[1], {**ANNOTATIONS[2], "caption": "d"}]
    write_captions(tmp_path / "c.json", IMAGES, changed, {})
    assert CaptionSet.load(tmp_path / "c.json").fingerprint != first


def _change(content, where, value):
    content = copy.deepcopy(content)
    target = content
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    return content


@pytest.mark.parametrize(
    "where, value, message",
    [
        (("images",), None, "no list 'images'"),
        (("annotations",), {}, "no list 'annotations'"),
        (("images", 0), 3, "a value of type int"),
        (("images", 0, "id"), "5", "id '5' in 'images' is not a 64-bit integer"),
        (("images", 0, "id"), True, "not a 64-bit integer"),
        (("images", 0, "id"), 9, "occurs twice"),
        (("images", 0, "split"), "dev", "split 'dev', not one of train, val, test"),
        (("images", 0, "file_name"), None, "no 'file_name'"),
        (("annotations", 0, "image_id"), 6, "for image 6, which is not in 'images'"),
        (("annotations", 0, "caption"), "  ", "empty"),
        (("annotations", 1, "image_id"), 5, "image 9 has no caption"),
    ],
)
def test_bad_content(path, where, value, message):
    path.write_text(json.dumps(_change(json.loads(path.read_text()), where, value)))
    with pytest.raises(CaptionerError, match=f"captions.json: .*{message}.*;"):
        CaptionSet.load(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "\x00", "[" * 100_000])
def test_not_json(path, text):
    path.write_text(text)
    with pytest.raises(CaptionerError, match="captions.json: "):
        CaptionSet.load(path)


def test_absent(tmp_path):
    with pytest.raises(CaptionerError, match="not found; .*download"):
        CaptionSet.load(tmp_path / "captions.json")
