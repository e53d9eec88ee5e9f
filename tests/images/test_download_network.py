"""The whole stage against a faulty local web server: archives and single images."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.images.captions import CaptionSet
from captioner.images.store import ImageStore
from captioner.parameters import RuntimeParameters
from tests.http_server import Reset, Stall, Status, Truncate, http_server  # noqa: F401  a fixture
from tests.images.making import SOURCES, coco_set, hashes, run, skipped

NAMES = ("train2017.zip", "val2017.zip", "annotations_trainval2017.zip")


@pytest.fixture
def root(tmp_path):
    return coco_set(tmp_path / "coco")


def archives(root: Path, target: Path) -> dict[str, bytes]:
    """A copy as the three official archives."""
    contents = {}
    for name, folder in zip(NAMES, ("train2017", "val2017", "annotations")):
        with zipfile.ZipFile(target / name, "w") as archive:
            for path in sorted((root / folder).iterdir()):
                archive.write(path, f"{folder}/{path.name}")
        contents[name] = (target / name).read_bytes()
        (target / name).unlink()
    return contents


def manifest_for(server, contents: dict[str, bytes], folder: Path) -> Path:
    """The real manifest with the local server's addresses and sizes, without checksums."""
    folder.mkdir()
    text = (SOURCES / "coco2017.yaml").read_text()
    for name, body in contents.items():
        text = re.sub(rf'"[^"]*/{name}", size: \d+, md5: \w+', f'"{server.url("/" + name)}", size: {len(body)}', text)
    (folder / "coco2017.yaml").write_text(text)
    return folder


def runtime(tmp_path, **options) -> RuntimeParameters:
    return RuntimeParameters(
        **{
            "workers": 1,
            "download_cache": str(tmp_path / "cache"),
            "retries": 3,
            "timeout": 1.0,
            "connections": 4,
            **options,
        }
    )


def test_archives_that_arrive_in_pieces(http_server, root, tmp_path):
    contents = archives(root, tmp_path)
    faults = ([Reset(0.5)], [Truncate(0.3), Status(503)], [])
    for (name, body), fault in zip(contents.items(), faults):
        http_server.add("/" + name, body, faults=fault)
    sources = manifest_for(http_server, contents, tmp_path / "sources")
    out = run(tmp_path / "out", "coco2017", runtime(tmp_path), sources)
    assert hashes(out) == hashes(run(tmp_path / "a", "coco2017", root=root))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(NAMES)
    requests = len(http_server.requests)
    run(tmp_path / "b", "coco2017", runtime(tmp_path), sources, image_size=32)
    assert len(http_server.requests) == requests  # another size fetches nothing again


def test_an_archive_that_is_gone(http_server, root, tmp_path):
    contents = archives(root, tmp_path)
    for name in NAMES[::2]:
        http_server.add("/" + name, contents[name])
    with pytest.raises(CaptionerError, match="val2017.zip: .*404.*download.root"):
        run(tmp_path / "out", "coco2017", runtime(tmp_path), manifest_for(http_server, contents, tmp_path / "sources"))
    assert not (tmp_path / "out" / "images.h5").exists()


def online(server, root: Path, away: Path, faults: dict[str, dict]) -> Path:
    """A copy with only annotations, whose images are on the server; returns its folder."""
    shutil.copytree(root / "annotations", away / "annotations")
    for table in (away / "annotations").iterdir():
        content = json.loads(table.read_text())
        for image in content["images"]:
            path = image["coco_url"].removeprefix("http://localhost")
            image["coco_url"] = server.url(path)
            options = faults.get(image["file_name"], {})
            if options is not None:
                server.add(path, (root / path[1:]).read_bytes(), **options)
        table.write_text(json.dumps(content))
    return away


def test_images_by_url(http_server, root, tmp_path):
    """A 404, a transient reset, stall and truncation, and a permanent truncation."""
    faults = {
        "000000000002.jpg": None,
        "000000000003.jpg": {"faults": [Reset(0.5)]},
        "000000000004.jpg": {"faults": [Stall(0.5)]},
        "000000000005.jpg": {"faults": [Truncate(0.5), Status(503)]},
        "000000000501.jpg": {"always": Truncate(0.5)},
    }
    away = online(http_server, root, tmp_path / "away", faults)
    out = run(tmp_path / "out", "coco2017", runtime(tmp_path, workers=2), root=away, from_="urls", max_missing=0.2)
    assert set(skipped(out)) == {"000000000002.jpg", "000000000501.jpg"} and "404" in skipped(out)["000000000002.jpg"]
    store = ImageStore.open(out / "images.h5")
    assert store.image_ids.tolist() == [1, 3, 4, 5, 6, 7, 8, 502, 503, 504]
    for number in (3, 4, 5):
        assert store.jpeg(store.rows([number])[0]) == (root / "train2017" / f"{number:012d}.jpg").read_bytes()
    assert 501 not in CaptionSet.load(out / "captions.json").image_ids("test")


def test_dead_images_are_tried_again_by_the_next_run(http_server, root, tmp_path):
    away = online(http_server, root, tmp_path / "away", {"000000000002.jpg": None})
    with pytest.raises(CaptionerError, match="1 of 12 listed images could not be fetched .*404"):
        run(tmp_path / "out", "coco2017", runtime(tmp_path), root=away, from_="urls")
    http_server.add("/train2017/000000000002.jpg", (root / "train2017" / "000000000002.jpg").read_bytes())
    out = run(tmp_path / "out", "coco2017", runtime(tmp_path), root=away, from_="urls")
    assert hashes(out)["images.h5"] == hashes(run(tmp_path / "a", "coco2017", root=root))["images.h5"]


def test_no_network_is_one_line(root, tmp_path):
    contents = dict.fromkeys(NAMES, b"x")

    class Nowhere:
        url = staticmethod(lambda path: f"http://127.0.0.1:9{path}")

    with pytest.raises(CaptionerError, match="annotations_trainval2017.zip: .*download.root") as caught:
        run(
            tmp_path / "out",
            "coco2017",
            runtime(tmp_path, retries=1),
            manifest_for(Nowhere, contents, tmp_path / "sources"),
        )
    assert "\n" not in caught.value.message
