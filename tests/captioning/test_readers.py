"""Images are read in other processes; what kills one of these is one image's fault."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from captioner.captioning.readers import ImageReaders
from captioner.features.reading import Recipe, read_image
from tests.captioning.small import files, jpeg

RECIPE = Recipe(256, 90, "squash", 64)
_DEADLY = """
import os, sys
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith("deadly.jpg"):
        os.kill(os.getpid(), 9)
sys.addaudithook(hook)
"""


@pytest.fixture
def readers():
    made = ImageReaders(RECIPE, 2)
    yield made
    made.close()


def read_all(readers: ImageReaders, paths: list[Path], shown: bool = False) -> list:
    return [image for part in readers.read([str(path) for path in paths], shown) for image in part.result()]


def test_images_come_as_they_are_read_here(readers: ImageReaders, tmp_path: Path) -> None:
    paths = files(tmp_path / "files")
    for found, path in zip(read_all(readers, paths, shown=True), paths, strict=True):
        expected = read_image(str(path), RECIPE, True)
        assert np.array_equal(found.pixels, expected.pixels) and found.pixels.shape == (64, 64, 3)
        assert found.image.tobytes() == expected.image.tobytes() and found.box == expected.box


def test_an_image_that_kills_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(_DEADLY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "deadly.jpg", "c.jpg", "d.jpg")]
    for path in paths:
        path.write_bytes(jpeg())
    readers = ImageReaders(RECIPE, 1)
    try:
        for _ in range(2):
            found = read_all(readers, paths)
            assert [image.error is None for image in found] == [True, True, False, True, True]
            assert found[2].error.startswith("the process that decoded it ended with status -9")
    finally:
        readers.close()


def test_a_process_that_was_killed_between_images_blames_none(readers: ImageReaders, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    assert read_all(readers, [path])[0].error is None
    for child in readers._children:
        os.kill(child._process.pid, signal.SIGKILL)
        child._process.wait()
    assert [found.error for found in read_all(readers, [path] * 3)] == [None] * 3
    assert read_all(readers, [path])[0].error is None


def test_names_that_are_no_text(readers: ImageReaders, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.jpg")
    Path(path).write_bytes(jpeg())
    assert read_all(readers, [Path(path)])[0].error is None


def test_closing_ends_the_processes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    readers = ImageReaders(RECIPE, 2)
    read_all(readers, [tmp_path / "a.jpg"] * 40)
    processes = [child._process for child in readers._children]
    readers.close()
    assert processes and all(process.returncode is not None for process in processes)
