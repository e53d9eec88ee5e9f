"""Real photos through all five stages."""

from __future__ import annotations

import json

import pytest

from captioner.images.captions import CaptionSet
from captioner.images.store import ImageStore
from tests.data import real_data
from tests.pipeline.workspace import STAGES, Workspace


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """COCO photos in the official layout, with ImageNet weights."""
    workspace = Workspace.create(
        tmp_path_factory.mktemp("coco") / "repository",
        dataset="coco2017",
        download={"root": str(real_data("coco_mini"))},
        extract={"weights": str(real_data("weights"))},
    )
    assert workspace.ran(workspace.dvc("repro")) == list(STAGES)
    return workspace


def test_every_photo_and_caption_arrives(finished: Workspace) -> None:
    source, folder = real_data("coco_mini"), finished.folder / "data" / "coco2017"
    captions, images = CaptionSet.load(folder / "captions.json"), ImageStore.open(folder / "images.h5")
    for part, splits in (("train2017", ("train", "val")), ("val2017", ("test",))):
        told = json.loads((source / "annotations" / f"captions_{part}.json").read_text())
        ours = [image for split in splits for image in captions.image_ids(split)]
        assert sorted(ours) == sorted(image["id"] for image in told["images"])
        wanted = sorted((row["image_id"], " ".join(row["caption"].split())) for row in told["annotations"])
        assert sorted((image, " ".join(text.split())) for image in ours for text in captions.captions(image)) == wanted
    assert sorted(images.image_ids.tolist()) == sorted(
        image for split in ("train", "val", "test") for image in captions.image_ids(split)
    )


def test_every_test_photo_is_captioned_and_scored(finished: Workspace) -> None:
    results = finished.folder / "results" / "evaluate"
    ids = CaptionSet.load(finished.folder / "data" / "coco2017" / "captions.json").image_ids("test")
    assert sorted(row["image_id"] for row in json.loads((results / "captions.json").read_text())) == sorted(ids)
    metrics = json.loads((results / "metrics.json").read_text())
    signature = json.loads((results / "signature.json").read_text())
    assert signature["dataset"] == "coco2017" and signature["images"] == len(ids)
    assert 0 <= metrics["bleu_4"] <= metrics["bleu_1"] <= 100 and metrics["cross_entropy"] > 0


def test_no_path_of_the_reader_is_in_a_result(finished: Workspace) -> None:
    folder = str(real_data("coco_mini").parent)
    for path in (finished.folder / "results").rglob("*"):
        assert not path.is_file() or folder.encode() not in path.read_bytes(), path
