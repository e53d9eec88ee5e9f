"""``captioner caption``: what is printed where, what is written, and the exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from captioner.captioning import Captioner
from captioner.cli import main
from captioner.images.decode import reads_avif, reads_heic
from tests.captioning import small
from tests.data import case


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small.make_run(tmp_path_factory.mktemp("caption") / "run")


def caption(run: dict[str, Path], *arguments: object) -> Result:
    return CliRunner().invoke(main, ["caption", *map(str, arguments), "--model", str(run["models"]), "--device", "cpu"])


@pytest.fixture
def folder(run: dict[str, Path], tmp_path: Path) -> Path:
    """Two images of one name, one with control characters in its name, one that is none."""
    for name, source in (("a/x.jpg", "00.jpg"), ("b/x.jpg", "01.jpg"), ("b/\x1b[31m\n.png", "03.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes((run["files"] / source).read_bytes())
    (tmp_path / "in/b/junk.jpg").write_bytes(b"junk")
    return tmp_path / "in"


def test_captions_with_log_probabilities(run: dict[str, Path]) -> None:
    path = run["files"] / "00.jpg"
    done = caption(run, path, "--beam", 4, "--n-best", 2)
    assert done.exit_code == 0 and done.stderr == ""
    with Captioner.load(run["models"], "cpu") as captioner:
        [result] = captioner.caption(path, beam=4, n_best=2)
    expected = [str(path)] + [f"{caption.log_probability:9.3f}  {caption.text}" for caption in result.captions]
    assert done.stdout.splitlines() == expected and len(expected) == 3


def test_json_alone_on_the_output_and_a_line_for_each_fault(run: dict[str, Path], folder: Path) -> None:
    done = caption(run, folder, folder / "none.jpg", "--json")
    rows = json.loads(done.stdout)
    assert [os.path.relpath(row["image"], folder) for row in rows] == [
        "a/x.jpg",
        "b/\x1b[31m\n.png",
        "b/junk.jpg",
        "b/x.jpg",
        "none.jpg",
    ]
    assert [sorted(set(row) - {"image"}) for row in rows] == [
        ["captions"],
        ["captions"],
        ["error"],
        ["captions"],
        ["error"],
    ]
    assert all(
        set(one) == {"caption", "log_probability"} and one["log_probability"] < 0
        for row in rows
        for one in row.get("captions", [])
    )
    assert done.exit_code == 1
    assert (
        done.stderr == f"Error: {folder}/b/junk.jpg: not an image of a known format\n"
        f"Error: {folder}/none.jpg: cannot be read (No such file or directory)\n"
    )


def test_names_are_escaped_for_people(run: dict[str, Path], folder: Path) -> None:
    done = caption(run, folder)
    assert done.exit_code == 1 and "\x1b" not in done.stdout + done.stderr
    assert f"{folder}/b/\\x1b[31m\\n.png" in done.stdout.splitlines()


def test_attention_images(run: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    done = caption(run, folder, "--attention", tmp_path / "out/put", "--json")
    written = [Path(row["attention"]) for row in json.loads(done.stdout) if "attention" in row]
    assert sorted(path.name for path in written) == ["_[31m_.attention.png", "x-2.attention.png", "x.attention.png"]
    assert sorted(written) == sorted((tmp_path / "out/put").iterdir())
    contents = set()
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width == 1200
            contents.add(image.convert("RGB").tobytes())
    assert len(contents) == 3


def test_a_place_where_nothing_can_be_written(run: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = caption(run, folder, "--attention", tmp_path / "file/out")
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "file/out: no folder for attention images can be made there" in done.stderr


def test_no_image(run: dict[str, Path], tmp_path: Path) -> None:
    done = caption(run, tmp_path, "--json")
    [row] = json.loads(done.stdout)
    assert done.exit_code == 1 and row["image"] == str(tmp_path) and "no image in this folder" in row["error"]
    assert done.stderr.count("\n") == 1


def test_files_that_are_passed_over(run: dict[str, Path], tmp_path: Path) -> None:
    for name, source in (("a.jfif", "00.jpg"), ("b.txt", "00.jpg")):
        (tmp_path / name).write_bytes((run["files"] / source).read_bytes())
    done = caption(run, tmp_path, "--json")
    assert [row["image"] for row in json.loads(done.stdout)] == [str(tmp_path / "a.jfif")]
    assert done.exit_code == 0 and done.stderr == f"{tmp_path}/b.txt: passed over (.txt is no image)\n"


def test_case_of_a_folder_of_a_phone(run: dict[str, Path]) -> None:
    """d.HEIC has the first bytes of such a file and no image."""
    folder = case("phone_folder")
    done = caption(run, folder, "--json")
    rows = {Path(row["image"]).name: row for row in json.loads(done.stdout)}
    assert sorted(rows) == ["a.jpg", "b.jfif", "c.avif", "d.HEIC"]
    assert {name for name, row in rows.items() if "captions" in row} >= {"a.jpg", "b.jfif"}
    assert ("captions" in rows["c.avif"]) == reads_avif()
    assert ("begins like HEIF" if reads_heic() else "pip install pillow-heif") in rows["d.HEIC"]["error"]
    assert done.exit_code == 1 and f"{folder}/README: passed over (no suffix of an image)" in done.stderr


def test_a_model_of_another_version_or_none(run: dict[str, Path], tmp_path: Path) -> None:
    folder = small.copy(run, tmp_path / "models")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 1}))
    for models, wanted in (
        (folder, "model format 1, this program reads format 3; train again: dvc repro"),
        (tmp_path / "none", "cannot be read"),
    ):
        done = caption({"models": models}, run["files"] / "00.jpg", "--json")
        assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1 and wanted in done.stderr


def test_the_command_as_people_start_it(run: dict[str, Path]) -> None:
    """As a process of its own: it ends by itself, with nothing on the standard error."""
    code = "from captioner.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "caption",
        str(run["files"] / "00.jpg"),
        "--model",
        str(run["models"]),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "" and len(json.loads(done.stdout)) == 1


def test_a_sheet_of_all_images(run: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    done = caption(run, folder, "--sheet", tmp_path / "sheet.png")
    assert done.exit_code == 1  # one image cannot be read; the sheet has the others
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.mode == "RGB" and sheet.width == 1200
        both = sheet.height
    caption(run, run["files"] / "00.jpg", "--sheet", tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as sheet:
        assert 100 < sheet.height < both
    assert caption(run, run["files"] / "00.jpg", "--sheet", tmp_path / "sheet.png/x.png").exit_code == 1


def test_a_model_of_scenes_says_what_it_knows(run: dict[str, Path], tmp_path: Path) -> None:
    models = small.copy(run, tmp_path / "models")
    config = json.loads((models / "config.json").read_text())
    (models / "config.json").write_text(json.dumps({**config, "dataset": "scenes"}))
    done = caption({"models": models}, run["files"] / "00.jpg")
    assert done.exit_code == 0
    [line] = done.stderr.splitlines()
    assert line == f"Note: {models} was trained on drawn scenes; it knows drawings only, no photos."
