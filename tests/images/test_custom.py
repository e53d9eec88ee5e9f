"""Custom data sets: valid and invalid tables."""

from __future__ import annotations

import json
import os
import unicodedata

import pytest

from captioner.errors import CaptionerError
from captioner.images.captions import CaptionSet
from captioner.images.datasets.custom import read_custom
from captioner.images.records import Absent
from captioner.images.store import ImageStore
from tests.images.making import custom_set, jpeg, run, skipped, table


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg", "sub/ä b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    return tmp_path


def records(path, root=None):
    return {record.file_name: record for record in read_custom(path, root).records}


def test_csv(folder):
    path = table(
        folder / "t.csv",
        [
            ("a.jpg", "one, with a comma", "train"),
            ("sub/ä b.jpg", "zwei", "dev"),
            ("a.jpg", 'a "quoted"\nword', "train"),
            ("b.jpg", "drei", ""),
        ],
    )
    found = records(path)
    assert {name: (r.image_id, r.captions, r.split) for name, r in found.items()} == {
        "a.jpg": (1, ("one, with a comma", 'a "quoted" word'), "train"),
        "sub/ä b.jpg": (2, ("zwei",), "val"),
        "b.jpg": (3, ("drei",), None),
    }
    assert all(not isinstance(record.source, Absent) for record in found.values())


def test_byte_order_mark_windows_lines_and_header_in_capitals(folder):
    path = folder / "t.csv"
    path.write_bytes("\ufeffImage, Caption\r\na.jpg,grün\r\n\r\n".encode())
    assert records(path)["a.jpg"].captions == ("grün",)


def test_jsonl(folder):
    path = folder / "t.jsonl"
    rows = [
        {"image": "a.jpg", "caption": "one", "split": "test"},
        {"image": "a.jpg", "caption": ["two", "熊"]},
        {"image": "b.jpg", "caption": "three", "split": None},
    ]
    path.write_text("\ufeff" + "\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    found = records(path)
    assert found["a.jpg"].captions == ("one", "two", "熊") and found["a.jpg"].split == "test"
    assert found["b.jpg"].split is None


def test_root_and_windows_separators(folder, tmp_path_factory):
    path = table(
        tmp_path_factory.mktemp("elsewhere") / "t.csv",
        [("sub\\ä b.jpg", "x", ""), ("./a.jpg", "y", ""), ("sub/../a.jpg", "z", "")],
    )
    found = records(path, folder)
    assert list(found) == ["sub/ä b.jpg", "a.jpg"] and found["a.jpg"].captions == ("y", "z")
    assert not isinstance(found["sub/ä b.jpg"].source, Absent)


def test_accents_written_another_way_than_on_disk(folder):
    path = table(folder / "t.csv", [(unicodedata.normalize("NFD", "sub/ä b.jpg"), "x", "")])
    assert not any(isinstance(record.source, Absent) for record in records(path).values())


def test_equal_rows_count_once_and_empty_captions_are_listed(folder):
    path = table(
        folder / "t.csv",
        [("a.jpg", "x", ""), ("a.jpg", "x ", ""), ("a.jpg", " ", ""), ("b.jpg", "", ""), ("", "lost", "")],
    )
    listing = read_custom(path, None)
    assert [record.captions for record in listing.records] == [("x",)]
    assert listing.uncaptioned == 1
    assert set(listing.skipped) == {
        ("a.jpg", "line 4: empty caption"),
        ("b.jpg", "line 5: empty caption"),
        ("b.jpg", "no captions"),
        ("line 6", "no image named"),
    }


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/etc/passwd", "sub/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", "\\\\server\\a.jpg"]
)
def test_path_that_leaves_the_folder(folder, name):
    path = table(folder / "sub" / "t.csv", [("ä b.jpg", "x", ""), (name, "x", "")])
    with pytest.raises(CaptionerError, match="t.csv, line 3: .* outside its folder"):
        read_custom(path, None)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("t.csv", "", "first line is ''"),
        ("t.csv", "image,caption,split\n", "no image is listed"),
        ("t.csv", "file;text\na.jpg;x\n", "columns image and caption"),
        ("t.csv", "image,caption\na.jpg,one, two\n", "line 2: 3 columns instead of 2"),
        ("t.csv", 'image,caption\na.jpg,"one" two\n', "line 2: not valid CSV"),
        ("t.csv", "image,caption,split\na.jpg,x,tset\n", "line 2: split 'tset' is unknown; give train, val or test"),
        (
            "t.csv",
            "image,caption,split\na.jpg,x,train\na.jpg,y,test\n",
            "line 3: image a.jpg is in train and in test",
        ),
        ("t.jsonl", '{"image": "a.jpg"\n', "line 1: not valid JSON"),
        ("t.jsonl", '["a.jpg", "x"]\n', "entry 1: not a JSON object"),
        ("t.jsonl", '{}\n["a.jpg", "x"]\n', "line 2: not a JSON object"),
        ("t.jsonl", '{"image": "a.jpg", "caption": "x", "split": 3}\n', "line 1: split 3 is unknown"),
        ("t.json", '{"images": [], "annotations": []}', "no image is listed"),
    ],
)
def test_bad_tables(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(CaptionerError, match=f"{name}.*{message}"):
        read_custom(folder / name, None)


def test_table_that_is_no_text_or_not_there(folder):
    with pytest.raises(CaptionerError, match="nothing.csv: not found; set download.captions"):
        read_custom(folder / "nothing.csv", None)
    with pytest.raises(CaptionerError, match="a.jpg: not UTF-8"):
        read_custom(folder / "a.jpg", None)
    with pytest.raises(CaptionerError, match="sub: cannot be read"):
        read_custom(folder / "sub", None)
    with pytest.raises(CaptionerError, match="download.root=.*gone: no such folder"):
        read_custom(table(folder / "t.csv", [("a.jpg", "x", "")]), folder / "gone")


def test_whole_stage(tmp_path):
    path = custom_set(tmp_path / "own", 20)
    out = run(tmp_path / "out", captions=path)
    captions, store = CaptionSet.load(out / "captions.json"), ImageStore.open(out / "images.h5")
    assert sorted(p.name for p in out.iterdir()) == ["captions.json", "images.h5", "skipped.csv"]
    assert (
        len(captions.image_ids("train")) == 17
        and len(captions.image_ids("val")) == 3
        and captions.image_ids("test") == []
    )
    assert store.image_ids.tolist() == list(range(1, 21))
    assert captions.captions(3) == ["a picture number 2", "the same picture 2"]
    assert store.jpeg(2) == jpeg(seed=2)
    assert skipped(out) == {}


def test_bad_images_are_listed_and_too_many_are_an_error(tmp_path):
    path = custom_set(tmp_path / "own", 10)
    (tmp_path / "own" / "003.jpg").write_bytes(jpeg()[:300])
    (tmp_path / "own" / "004.jpg").write_text("no image")
    (tmp_path / "own" / "005.jpg").unlink()
    with pytest.raises(
        CaptionerError,
        match=(
            r"1 of 10 listed images are not there \(the first: 005.jpg: file not found\), "
            r"more than download.max_missing=0.02; .*max_missing=0.1"
        ),
    ):
        run(tmp_path / "out", captions=path)
    with pytest.raises(
        CaptionerError, match=r"3 of 10 listed images are missing or unreadable .*max_missing=0.25; .*max_missing=0.3"
    ):
        run(tmp_path / "out", captions=path, max_missing=0.25)
    assert not (tmp_path / "out" / "images.h5").exists() and not (tmp_path / "out" / "captions.json").exists()
    out = run(tmp_path / "out", captions=path, max_missing=0.3)
    assert set(skipped(out)) == {"003.jpg", "004.jpg", "005.jpg"}
    assert skipped(out)["004.jpg"] == "not an image of a known format"
    assert CaptionSet.load(out / "captions.json").image_ids("train") + CaptionSet.load(out / "captions.json").image_ids(
        "val"
    )
    assert len(ImageStore.open(out / "images.h5")) == 7


def test_things_that_are_no_files(tmp_path):
    path = custom_set(tmp_path / "own", 10)
    (tmp_path / "own" / "003.jpg").unlink()
    (tmp_path / "own" / "004.jpg").unlink()
    os.mkfifo(tmp_path / "own" / "003.jpg")
    (tmp_path / "own" / "004.jpg").mkdir()
    out = run(tmp_path / "out", captions=path, max_missing=0.3)
    assert skipped(out) == {"003.jpg": "not a regular file", "004.jpg": "not a regular file"}


def test_images_without_captions_count_as_missing(tmp_path):
    path = custom_set(tmp_path / "own", 10)
    with open(path, "a") as file:
        file.write("lonely.jpg,,\n")
    with pytest.raises(CaptionerError, match="1 of 11 listed images have no caption"):
        run(tmp_path / "out", captions=path)
    assert skipped(run(tmp_path / "out", captions=path, max_missing=0.1))["lonely.jpg"] == "no captions"


def test_all_missing_names_the_likely_cause(tmp_path):
    path = table(tmp_path / "t.csv", [("a.jpg", "x", ""), ("b.jpg", "y", "")])
    with pytest.raises(CaptionerError, match="2 of 2 .*check the names"):
        run(tmp_path / "out", captions=path)


@pytest.mark.parametrize("count, warned", [(2, True), (20, False)])
def test_one_validation_image_is_a_warning(tmp_path, capsys, count, warned):
    run(tmp_path / "out", captions=custom_set(tmp_path / "own", count))
    printed = capsys.readouterr().err
    assert ("warning: download custom: one val image; CIDEr-D is 0" in printed) == warned
    assert ("raise download.val_share" in printed) == warned
