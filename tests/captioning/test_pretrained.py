"""The model of photos that comes with the program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioner import Captioner
from captioner.features.encoders.packages import PACKAGES
from captioner.pretrained import FLICKR8K
from tests.data import ROOT

SAMPLES = ROOT / "samples"


@pytest.fixture(scope="module")
def captioner():
    with Captioner.load(device="cpu") as loaded:
        yield loaded


def test_what_lies_there() -> None:
    files = {path.name: path.stat().st_size for path in FLICKR8K.iterdir()}
    assert set(files) == {"model.safetensors", "config.json", "MODEL_CARD.md"}
    assert sum(files.values()) < 12e6
    config = json.loads((FLICKR8K / "config.json").read_text())
    assert config["dataset"] == "flickr8k" and config["weights_name"] == "package" and config["encoder"] in PACKAGES
    assert config["weights_license"] == "apache-2.0"


def test_it_is_taken_where_no_model_is_named(captioner: Captioner) -> None:
    assert captioner.folder == FLICKR8K and captioner.dataset == "flickr8k"
    images = sorted(SAMPLES.glob("*.jpg"))
    assert len(images) == 6
    texts = [result.text for result in captioner.caption(images)]
    assert len(set(texts)) == 6 and all(4 <= len(text.split()) <= 20 for text in texts)
    # what no one can miss in them; where the model is wrong, samples/README.md says so
    assert "tennis" in texts[5] or "player" in texts[5] or "man" in texts[5]


def test_the_command_needs_no_network_and_makes_the_readmes_image(captioner: Captioner, tmp_path: Path) -> None:
    """``captioner caption samples --sheet docs/samples.png``, as the README says, without a hub's cache."""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9"}
    sheet = tmp_path / "samples.png"
    command = "from captioner.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "caption", "samples", "--n-best", "1", "--sheet", str(sheet)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "samples/README.md: passed over (.md is no image)\n", done.stderr
    said = done.stdout.splitlines()[1::2]
    assert [line.split(maxsplit=1)[1] for line in said] == [
        result.text for result in captioner.caption(sorted(SAMPLES.glob("*.jpg")))
    ]
    with Image.open(sheet) as drawn, Image.open(ROOT / "docs/samples.png") as shown:
        assert drawn.size == shown.size


def test_samples_are_attributed() -> None:
    text = (SAMPLES / "README.md").read_text()
    for path in SAMPLES.glob("*.jpg"):
        assert f"`{path.name}`" in text
    assert text.count("https://www.flickr.com/photo.gne?id=") == 6 and "CC BY 2.0" in text
