"""The README's image from a finished run."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from captioner.errors import CaptionerError
from captioner.evaluation.showcase import showcase
from tests.evaluation import small


@pytest.fixture
def finished(tmp_path, monkeypatch):
    monkeypatch.setattr("captioner.metrics.scores.find_java", lambda: None)
    paths = small.make_run(tmp_path / "run")
    return {**paths, "results": small.run(paths, tmp_path / "results")}


def test_images_are_drawn_by_lot(finished, tmp_path):
    chosen = showcase(small.parameters(), **finished, out=tmp_path / "captions.png", count=3)
    assert len(chosen) == 3 and set(chosen) <= set(small.SPLITS["test"])
    with Image.open(tmp_path / "captions.png") as image:
        assert image.width == 1200
    assert chosen == showcase(small.parameters(), **finished, out=tmp_path / "again.png", count=3)
    assert (tmp_path / "captions.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_results_of_another_run_are_refused(finished, tmp_path):
    path = finished["results"] / "captions.json"
    path.write_text(json.dumps([{**row, "caption": "a lie"} for row in json.loads(path.read_text())]))
    with pytest.raises(CaptionerError, match="'a lie' there.*run the evaluate stage again"):
        showcase(small.parameters(), **finished, out=tmp_path / "captions.png")
    assert not (tmp_path / "captions.png").exists()


def test_an_unfinished_run_is_an_error(finished, tmp_path):
    (finished["results"] / "signature.json").unlink()
    with pytest.raises(CaptionerError, match="signature.json.*run the evaluate stage"):
        showcase(small.parameters(), **finished, out=tmp_path / "captions.png")
