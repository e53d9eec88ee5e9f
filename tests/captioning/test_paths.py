"""Which files a folder means, names on a terminal, and names of what is written."""

from __future__ import annotations

import os
from pathlib import Path

from captioner.captioning.paths import Names, find_images, printable


def test_folders_and_files(tmp_path: Path) -> None:
    for name in ("b/z.JPG", "b/a.png", "a/x.webp", "a/notes.txt", "c.jpeg", ".hidden.jpg", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a/link").symlink_to(tmp_path / "b")
    found = find_images(
        [str(tmp_path / "a/notes.txt"), str(tmp_path), str(tmp_path / "none.jpg"), str(tmp_path / "empty")]
    )
    assert [os.path.relpath(path, tmp_path) for path in found.images] == [
        "a/notes.txt",
        "c.jpeg",
        "a/x.webp",
        "b/a.png",
        "b/z.JPG",
        "none.jpg",
    ]
    assert [(os.path.relpath(path, tmp_path), reason[:8]) for path, reason in found.faults] == [("empty", "no image")]
    assert found.passed_over_lines() == [
        f"{tmp_path}/.hidden.jpg: passed over (hidden file)",
        f"{tmp_path}/a/link: passed over (link to a folder)",
        f"{tmp_path}/a/notes.txt: passed over (.txt is no image)",
        f"{tmp_path}/empty/notes.txt: passed over (.txt is no image)",
        f"{tmp_path}/empty/notes.txt: passed over (.txt is no image)",
    ]


def test_many_files_that_are_passed_over_are_counted_by_kind(tmp_path: Path) -> None:
    for name in [*(f"{number}.txt" for number in range(1999)), "a.PDF", "b.pdf", "README", "x.jfif", "y.heic"]:
        (tmp_path / name).write_bytes(b"")
    found = find_images([str(tmp_path)])
    assert [os.path.basename(path) for path in found.images] == ["x.jfif", "y.heic"] and not found.faults
    assert found.passed_over_lines() == [
        "1,999 passed over (.txt is no image)",
        "2 passed over (.pdf is no image)",
        "1 passed over (no suffix of an image)",
    ]


def test_names_on_a_terminal() -> None:
    assert printable("a\nb\x1b[31m\u202ec é猫\udcff") == "a\\nb\\x1b[31m\\u202ec é猫\\udcff"


def test_no_two_images_write_one_file() -> None:
    names = Names(".attention.png")
    given = ["x.jpg", "a/x.png", "X.jpg", "x-2.jpg", "x.jpg", "a\nb.jpg", ".jpg", "é" * 300 + ".jpg"]
    made = [names.of(name) for name in given]
    assert made[:5] == [
        "x.attention.png",
        "x-2.attention.png",
        "X-3.attention.png",
        "x-2-2.attention.png",
        "x-4.attention.png",
    ]
    assert made[5] == "a_b.attention.png"
    assert len({name.casefold() for name in made}) == len(made) and all(len(name.encode()) <= 255 for name in made)
