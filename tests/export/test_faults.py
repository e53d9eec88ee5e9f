"""What is refused, in one line: damaged exports, folders of the wrong kind, models that cannot be exported."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from captioner.captioning import Captioner
from captioner.captioning.onnx.captioner import OnnxCaptioner, open_session
from captioner.captioning.onnx.files import CONFIG, GRAPHS, MEMORY, STEP, read_export, write_config
from captioner.cli import main
from captioner.errors import CaptionerError
from captioner.export import graphs as exporting_graphs
from captioner.export import onnx as exporting


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def assert_refused(done: Result, *wanted: str) -> None:
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.output
    for part in wanted:
        assert part in done.stderr


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copied"))


@pytest.fixture
def graphs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The graphs of the small model, which exporting gives at once."""
    found = read_export(exported).graphs
    monkeypatch.setattr(exporting, "encoder_graph", lambda _: found["encoder.onnx"])
    monkeypatch.setattr(exporting, "decoder_graphs", lambda *_: found)
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_a_damaged_graph(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    middle = len(content) // 2
    for damaged in (content[:-1], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], b""):
        (copied / name).write_bytes(damaged)
        with pytest.raises(CaptionerError, match=f"{name}: its SHA-256 is .* as config.json says: .*export again"):
            OnnxCaptioner.load(copied)
    (copied / name).unlink()
    with pytest.raises(CaptionerError, match=f"{name}: cannot be read .*export again"):
        OnnxCaptioner.load(copied)


def test_a_graph_of_another_decoder(copied: Path) -> None:
    """With right hashes: an export that somebody has put together."""
    config = json.loads((copied / CONFIG).read_text())
    found = {name: (copied / name).read_bytes() for name in GRAPHS}
    config.pop("fingerprint")
    for changed, message in (
        ({**found, MEMORY: found["encoder.onnx"]}, "are not of one decoder"),
        ({**found, STEP: b"no graph"}, "decoder_step.onnx: onnxruntime .* cannot load it"),
    ):
        for name, content in changed.items():
            (copied / name).write_bytes(content)
        (copied / CONFIG).write_text(write_config(config, changed))
        with pytest.raises(CaptionerError, match=message):
            OnnxCaptioner.load(copied)


@pytest.mark.parametrize("location", ["../weights.bin", "{folder}/weights.bin"])
def test_a_graph_that_names_a_file_elsewhere(location: str, tmp_path: Path, capfd, monkeypatch) -> None:
    """Weights outside of the graph would be read from any path that it names."""
    onnx = pytest.importorskip("onnx")
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location.format(folder=tmp_path))
    ends = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in ("x", "y")]
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([add], "graph", ends[:1], ends[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(CaptionerError, match="x.onnx: onnxruntime .* cannot load it .*External data path"):
        open_session(model.SerializeToString(), "x.onnx")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"max_length": 5}}, "damaged"),
        ({"search": {"max_length": 10**9, "min_length": 1, "length_normalisation": 1.0}}, "damaged"),
        ({"search": {"max_length": "x", "min_length": 1, "length_normalisation": 1.0}}, "damaged"),
        ({"grid": [4]}, "damaged"),
        ({"grid": "44"}, "damaged"),
        ({"images": None}, "what it says of its images is damaged"),
        ({"vocabulary": {"format_version": 1, "words": ["a"]}}, "vocabulary: its first words are"),
    ],
)
def test_a_config_with_impossible_values(copied: Path, change: dict, message: str) -> None:
    config = json.loads((copied / CONFIG).read_text())
    config.pop("fingerprint")
    found = {name: (copied / name).read_bytes() for name in GRAPHS}
    (copied / CONFIG).write_text(write_config({**config, **change}, found))
    with pytest.raises(CaptionerError, match=f"config.json: {message}"):
        OnnxCaptioner.load(copied)


def test_a_config_that_was_edited_or_torn(copied: Path) -> None:
    content = (copied / CONFIG).read_text()
    for changed, message in (
        (content.replace('"a"', '"b"', 1), "its content is not what its fingerprint says"),
        (content.replace('"format_version": 1,\n "grid"', '"format_version": 2,\n "grid"'), "export format 2"),
        (content[: len(content) // 2], "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
    ):
        assert changed != content
        (copied / CONFIG).write_text(changed)
        with pytest.raises(CaptionerError, match=message):
            OnnxCaptioner.load(copied)


def test_a_folder_of_the_wrong_kind(run: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    image = run["files"] / "00.jpg"
    onnx = ("caption", image, "--runtime", "onnx", "--model")
    assert_refused(invoke(*onnx, run["models"]), "not an ONNX export; make one", "or use --runtime torch")
    assert_refused(invoke(*onnx, tmp_path), "config.json: cannot be read", "captioner export DIR --onnx")
    assert_refused(
        invoke("caption", image, "--model", exported), "an ONNX export, not a trained model; use --runtime onnx"
    )
    assert_refused(invoke(*onnx, exported, "--device", "cuda"), "--device=cuda: --runtime onnx computes on the CPU")
    export = ("export", tmp_path / "out", "--onnx", "--model")
    assert_refused(invoke(*export, exported), "an ONNX export, not a trained model")
    assert_refused(invoke(*export, tmp_path / "none"), "cannot be read", "train a model first")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    with pytest.raises(CaptionerError, match="an ONNX export, not a trained model"):
        Captioner.load(exported, "cpu")


def test_a_model_in_half_precision(run: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(invoke("export", out, "--model", run["models"], "--int8"), "--int8 goes with --onnx")
    done = invoke("export", out, "--model", run["models"])
    assert done.exit_code == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (run["models"], out)]
    assert sizes[1] < 0.55 * sizes[0] and "model.safetensors" in done.stdout
    assert_refused(invoke("export", out, "--model", run["models"]), "out: there is something already")
    with Captioner.load(out, "cpu") as captioner:
        assert captioner.caption(run["files"] / "00.jpg")[0].text
    assert_refused(invoke("export", tmp_path / "other", "--model", tmp_path), "config.json: cannot be read")
    assert not (tmp_path / "other").exists()


def test_what_may_be_replaced(run: dict[str, Path], tmp_path: Path, graphs: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    export = ("export", out, "--onnx", "--model", run["models"])
    out.write_text("mine")
    assert_refused(invoke(*export), "out: a file; name a new folder")
    out.unlink()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert_refused(invoke(*export), "out: a folder with other files")
    assert_refused(invoke("export", run["models"], *export[2:]), "models: a folder with other files")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert invoke(*export).exit_code == 0  # into an empty folder
    (out / STEP).write_bytes(b"damaged")
    assert invoke(*export).exit_code == 0  # in the place of an export
    assert read_export(out).graphs == graphs


def test_an_export_that_ends_early_is_no_export(
    run: dict[str, Path], tmp_path: Path, graphs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    exporting.export_onnx(run["models"], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def killed(*_: object) -> dict[str, bytes]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "decoder_graphs", killed)
        with pytest.raises(KeyboardInterrupt):
            exporting.export_onnx(run["models"], out, int8=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # the old one stands
    with monkeypatch.context() as patch:  # what was finished is not made again
        patch.setattr(exporting, "encoder_graph", killed)
        exporting.export_onnx(run["models"], out, int8=True)
    assert read_export(out).config["int8"] and not (tmp_path / "out.partial").exists()


def test_packages_that_are_missing(run: dict[str, Path], exported: Path, tmp_path: Path, monkeypatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", version)
        with pytest.raises(CaptionerError, match=r"torch: not installed.*pip install '.\[onnx\]'"):
            exporting.export_onnx(run["models"], tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(CaptionerError, match=r"onnxruntime: cannot be imported .*pip install '.\[onnx\]'"):
        OnnxCaptioner.load(exported)


class _Branching(nn.Module):
    """What torch.export cannot trace."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_torch_cannot_export() -> None:
    with pytest.raises(
        CaptionerError, match="x.onnx: torch .* cannot export it to ONNX .*use --runtime torch"
    ) as error:
        exporting_graphs._export(
            _Branching(), "x.onnx", (torch.ones(2, 3),), ({0: torch.export.Dim("n")},), ["x"], ["y"]
        )
    assert len(error.value.message) < 600


def test_a_graph_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def run(self, *_: object) -> list:
            return [torch.zeros(2, 3).numpy()]

    monkeypatch.setattr(exporting_graphs, "open_session", lambda *_: Wrong())
    with pytest.raises(CaptionerError, match="x.onnx: onnxruntime's result differs from torch's by 1"):
        exporting_graphs._check(nn.Identity(), b"", "x.onnx", (torch.ones(2, 3),), ["x"])


def test_weights_beyond_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting_graphs, "MAX_BYTES", 100)
    with pytest.raises(CaptionerError, match="x.onnx: weights of .* GB, but one ONNX graph holds"):
        exporting_graphs._export(nn.Linear(9, 9), "x.onnx", (torch.ones(2, 9),), (None,), ["x"], ["y"])


def test_a_decoder_whose_state_is_of_its_own_kind() -> None:
    @dataclass
    class State:
        words: list

    for state in (State([1]), torch.ones(1), State([])):
        with pytest.raises(CaptionerError, match="is no dataclass of tensors, so it cannot be exported to ONNX"):
            exporting_graphs.flatten(state)
