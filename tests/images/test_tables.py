"""Text of tables: what ends a row, quotes, JSON documents, invalid Unicode, names in another letter case."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.images.captions import CaptionSet
from captioner.images.containers import Folder, Zip
from captioner.images.datasets.custom import read_custom
from captioner.images.datasets.flickr import read_flickr
from captioner.images.manifests import read_manifest
from captioner.images.records import Absent, valid_unicode
from captioner.images.tables import csv_rows, rows
from tests.data import case
from tests.images.making import SOURCES, coco_json, jpeg, run, skipped

SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Images").mkdir()
    for name in ("a.jpg", "b.jpg", "Images/1_a.jpg", "Images/2_b.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    return tmp_path


def captions(table: Path, text: str) -> dict[str, tuple[str, ...]]:
    table.write_bytes(text.encode())
    return {record.file_name: record.captions for record in read_custom(table, None).records}


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_only_line_breaks_end_a_row(folder: Path, separator: str, end: str) -> None:
    text = f"a brown{separator}dog"
    expected = {"a.jpg": ("a brown dog",), "b.jpg": ("a cat",)}
    lines = ["image,caption", f"a.jpg,{text}", "b.jpg,a cat", ""]
    assert captions(folder / "t.csv", end.join(lines)) == expected
    if separator in "\u2028\u2029\x85":  # JSON escapes the control characters below U+0020
        lines = [
            json.dumps({"image": i, "caption": c}, ensure_ascii=False) for i, c in (("a.jpg", text), ("b.jpg", "a cat"))
        ]
        assert captions(folder / "t.jsonl", end.join(lines)) == expected


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize(
    "name, header, row",
    [
        ("captions.txt", "image,caption", "{},{}"),
        ("Flickr8k.token.txt", None, "{}#0\t{}"),
        ("results.csv", "image_name| comment_number| comment", "{}| 0| {}"),
    ],
)
def test_rows_of_flickr(folder: Path, name: str, header: str | None, row: str, separator: str, end: str) -> None:
    lines = [
        *([header] if header else []),
        row.format("1_a.jpg", f"a{separator}dog"),
        row.format("2_b.jpg", "a cat"),
        "",
    ]
    (folder / name).write_bytes(end.join(lines).encode())
    dataset = "flickr30k" if name == "results.csv" else "flickr8k"
    listing = read_flickr(read_manifest(dataset, SOURCES), folder)
    assert [record.captions for record in listing.records] == [("a dog",), ("a cat",)] and listing.skipped == []


def test_rows_are_those_of_the_csv_module() -> None:
    text = 'a,"b ""c"" \n d"\r\n\n,,\n"x, y",\u2028z\r1,2'
    expected = list(csv.reader(['a,"b ""c"" \n', ' d"\r\n', '"x, y",\u2028z\r', "1,2"]))
    for strict in (True, False):
        assert list(csv_rows(Path("t"), text, strict)) == list(zip((1, 5, 6), expected))
    assert rows("a\u2028\n\nb\r\rc\r\n") == ["a\u2028", "", "b", "", "c"]


@pytest.mark.parametrize(
    "lines, message",
    [
        (['a.jpg,"a dog', "b.jpg,a cat"], "line 2: .*the quote that opens here is never closed"),
        (['a.jpg,"a dog', "b.jpg,a cat", 'b.jpg,"a cat"'], "line 2: .* opens here is closed in line 4, before the end"),
        (["a.jpg,a dog", 'a.jpg,"two\nlines","x', "b.jpg,a"], "line 4: .*never closed"),
        (["a.jpg,a dog", 'a.jpg,"a dog', 'b.jpg,"'], "line 3: a quote that opens here is closed in line 4 only"),
        (['a.jpg,"one" two'], "line 2: .* opens here is closed in line 2, before the end"),
        (['a.jpg,"a dog', *["b.jpg,a cat on a mat"] * 10_000], "line 2: .*never closed"),
    ],
)
def test_an_unclosed_quote_names_the_line_where_it_opened(folder: Path, lines: list[str], message: str) -> None:
    with pytest.raises(CaptionerError, match=f"t.csv, {message}"):
        captions(folder / "t.csv", "\n".join(["image,caption", *lines, ""]))


def test_quotes_in_captions_txt(folder: Path) -> None:
    """Text may follow a quoted word within its line; a quote that would swallow further rows is an error."""

    def read(*lines: str) -> list[tuple[str, ...]]:
        (folder / "captions.txt").write_text("\n".join(["image,caption", *lines, ""]))
        return [record.captions for record in read_flickr(read_manifest("flickr8k", SOURCES), folder).records]

    assert read('1_a.jpg,"Stop" says a sign, in red', '2_b.jpg,a 7" cake') == [
        ("Stop says a sign, in red",),
        ('a 7" cake',),
    ]
    for lines, wrong in ((['1_a.jpg,"a dog', "2_b.jpg,a"], 2), (["2_b.jpg,a", '1_a.jpg,"a dog', '2_b.jpg,"a cat"'], 3)):
        with pytest.raises(CaptionerError, match=f"captions.txt, line {wrong}: .*the quote that opens here"):
            read(*lines)


def test_a_row_of_many_lines_is_pointed_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two stray quotes make one valid cell of all that is between them. Few captions have so many line breaks."""
    assert captions(folder / "t.csv", 'image,caption\na.jpg,"a\n\n\n\ndog"\nb.jpg,x\n')["a.jpg"] == ("a dog",)
    assert captions(folder / "t.csv", 'image,caption\na.jpg,"a\n\n\n\n\ndog"\nb.jpg,x\n')["a.jpg"] == ("a dog",)
    assert (
        capsys.readouterr().err.count("t.csv, line 2: this row ends in line 7; check that its quotes are closed") == 1
    )


def test_empty_cells_at_the_end_of_rows(folder: Path) -> None:
    text = "image,caption,split,,\na.jpg,a dog,train,,\nb.jpg,a cat,,,,, \n,,,,\n"
    assert captions(folder / "t.csv", text) == {"a.jpg": ("a dog",), "b.jpg": ("a cat",)}
    assert captions(folder / "t.csv", "image,caption\na.jpg,a dog,,\n,,\n") == {"a.jpg": ("a dog",)}
    assert read_custom(folder / "t.csv", None).skipped == []
    with pytest.raises(CaptionerError, match="line 2: 4 columns instead of 2"):
        captions(folder / "t.csv", "image,caption\na.jpg,a dog,,on grass\n")
    (folder / "captions.txt").write_text("image,caption,,\n1_a.jpg,a dog, running,,\n2_b.jpg,a cat,\n")
    listing = read_flickr(read_manifest("flickr8k", SOURCES), folder)
    assert [record.captions for record in listing.records] == [("a dog, running",), ("a cat",)]


def test_json_list(folder: Path) -> None:
    content = [{"image": "b.jpg", "caption": ["x", "y"], "id": 7}, {"image": "a.jpg", "caption": "z", "split": "dev"}]
    for name in ("t.json", "t.jsonl", "t.txt"):
        (folder / name).write_text(json.dumps(content, indent=2))
        found = read_custom(folder / name, None).records
        assert [(r.image_id, r.file_name, r.captions, r.split) for r in found] == [
            (1, "b.jpg", ("x", "y"), None),
            (2, "a.jpg", ("z",), "val"),
        ]
    (folder / "t.json").write_text('[\n{"image": "a.jpg", "caption": "x"},\n')
    with pytest.raises(CaptionerError, match=r"t.json: not valid JSON \(.*line 3"):
        read_custom(folder / "t.json", None)
    (folder / "t.json").write_text('[{"image": "a.jpg", "caption": "x"}, 3]')
    with pytest.raises(CaptionerError, match="t.json, entry 2: not a JSON object"):
        read_custom(folder / "t.json", None)


def test_coco_captions(folder: Path) -> None:
    content = coco_json({12: "b.jpg", 5: "a.jpg"})
    content["images"][0]["split"] = "test"
    content["annotations"].append({"id": 1, "image_id": 99, "caption": "of no image"})
    (folder / "t.json").write_text(json.dumps(content, indent=1))
    listing = read_custom(folder / "t.json", None)
    assert [(r.image_id, r.file_name, r.captions, r.split) for r in listing.records] == [
        (5, "a.jpg", ("Caption 0 of 5.", "Caption 1 of 5."), None),
        (12, "b.jpg", ("Caption 0 of 12.", "Caption 1 of 12."), "test"),
    ]
    assert listing.skipped == [("image id 99", "a caption for an image that the annotations do not list")]
    content["annotations"] = [{"image_id": 5, "bbox": [1, 2, 3, 4]}]
    (folder / "t.json").write_text(json.dumps(content))
    with pytest.raises(CaptionerError, match="has no 'caption'; give captions"):
        read_custom(folder / "t.json", None)


def test_what_the_stage_wrote_can_be_read_again(folder: Path, tmp_path: Path) -> None:
    (folder / "t.csv").write_text("image,caption,split\nb.jpg,x,val\na.jpg,y,train\n")
    run(tmp_path / "first", captions=folder / "t.csv")
    again = run(tmp_path / "second", captions=tmp_path / "first/captions.json", root=folder)
    assert (again / "captions.json").read_bytes() == (tmp_path / "first/captions.json").read_bytes()


def test_unpaired_surrogates_are_replaced_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a\udcff.jpg").write_bytes(jpeg())  # the name of a file that is no UTF-8
    rows = [
        {"image": "b.jpg", "caption": ["half \ud83d", "whole \ud83d\ude00"], "split": "train"},
        {"image": "a\udcff.jpg", "caption": "a cat", "split": "val"},
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = run(folder / "out", captions=folder / "t.jsonl")
    assert "t.jsonl: 2 captions or names have characters that are no valid Unicode" in capsys.readouterr().err
    found = CaptionSet.load(out / "captions.json")
    assert found.captions(1) == ["half \ufffd", "whole \U0001f600"] and found.file_name(2) == "a\ufffd.jpg"
    assert skipped(out) == {}


def test_valid_unicode() -> None:
    assert valid_unicode("a\ud83d b \ude00\U0001f600é") == "a\ufffd b \ufffd\U0001f600é"


def test_another_letter_case(folder: Path) -> None:
    (folder / "Sub").mkdir()
    (folder / "Sub/Ä.JPG").write_bytes(jpeg())
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    found = {
        name: Folder(folder, "not there").source(name, "t")
        for name in ("A.jpg", "sub/a\u0308.jpg", "gone.jpg", "c.jpg")
    }
    assert found == {
        "A.jpg": Absent("not there, but a.jpg exists: the letter case differs"),
        "sub/a\u0308.jpg": Absent("not there, but Sub/Ä.JPG exists: the letter case differs"),
        "gone.jpg": Absent("not there"),
        "c.jpg": Absent("not there"),
    }
    with zipfile.ZipFile(folder / "val.zip", "w") as archive:
        archive.writestr("val/A.JPG", jpeg())
    assert Zip(folder / "val.zip").source("a.jpg", "t") == Absent(
        "not in val.zip, but A.JPG exists: the letter case differs"
    )
    (folder / "t.csv").write_text("image,caption\nA.jpg,x\nb.jpg,y\n")
    with pytest.raises(CaptionerError, match="A.jpg: file not found, but a.jpg exists: the letter case differs"):
        run(folder / "out", captions=folder / "t.csv")


def test_case_of_a_line_separator() -> None:
    found = {r.file_name: r.captions for r in read_custom(case("line_separator") / "t.csv", None).records}
    assert len(found) == 4 and found["p3.jpg"][0].startswith("a brown dog runs o")


def test_case_of_a_lone_surrogate(tmp_path: Path) -> None:
    out = run(tmp_path, captions=case("lone_surrogate") / "t.jsonl")
    assert CaptionSet.load(out / "captions.json").captions(4) == ["a dog on a mat \ufffd"]


def test_case_of_an_unclosed_quote() -> None:
    with pytest.raises(CaptionerError, match="t.csv, line 101: .*the quote that opens here is never closed"):
        read_custom(case("unclosed_quote") / "t.csv", None)
