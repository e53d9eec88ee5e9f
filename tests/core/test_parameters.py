"""params.yaml: accepted values, errors, and choices from registries."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from captioner.errors import CaptionerError
from captioner.parameters import Parameters, load_parameters, parse_parameters
from captioner.parameters.load import parameter_names
from captioner.parameters.options import field_choices
from captioner.parameters.table import table
from stages.common import read_parameters
from tests.data import ROOT


def test_the_projects_own_file_is_valid_and_short() -> None:
    load_parameters(ROOT / "params.yaml")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    keys = sum(len(value) if isinstance(value, dict) else 1 for value in content.values())
    assert keys <= 45


def test_every_key_has_a_comment() -> None:
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if ":" in line and not line.strip().startswith("#") and not line.strip().endswith(":"):
            assert "#" in line, line


def test_defaults_in_the_file_are_the_defaults_in_the_code() -> None:
    """A parameter must have the same value whether params.yaml has it or not."""
    assert load_parameters(ROOT / "params.yaml") == Parameters()


@pytest.mark.parametrize(
    "content, words",
    [
        ({"decodr": "lstm"}, ["decodr", "did you mean decoder?"]),
        ({"train": {"dropuot": 0.1}}, ["train.dropuot", "did you mean train.dropout?"]),
        ({"dropout": 0.1}, ["did you mean train.dropout?"]),
        ({"decoder": "lstn"}, ["decoder='lstn'", "did you mean lstm?"]),
        ({"train": {"epochs": "ten"}}, ["train.epochs='ten'", "of type int, not str"]),
        ({"train": {"epochs": 2.5}}, ["of type int, not float"]),
        ({"train": {"epochs": True}}, ["of type int, not bool"]),
        ({"train": {"epochs": -1}}, ["at least 0"]),
        ({"train": {"dropout": float("nan")}}, ["finite"]),
        ({"evaluate": {"beam_sizes": []}}, ["evaluate.beam_sizes", "empty"]),
        ({"evaluate": {"beam_sizes": [3, 0]}}, ["at least 1"]),
        ({"evaluate": {"ensemble": [3]}}, ["evaluate.ensemble=[3]", "of type str"]),
        ({"train": 3}, ["train is 3", "mapping"]),
        ([1], ["mapping"]),
        ({"download": {"root": 3}}, ["str or null"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(content: object, words: list[str]) -> None:
    with pytest.raises(CaptionerError) as caught:
        parse_parameters(content, "params.yaml")
    for word in ["params.yaml", *words]:
        assert word in caught.value.message
    assert "\n" not in caught.value.message


REGISTRIES = [
    ("attention", "captioner.decoder.attention", "ATTENTIONS"),
    ("train.norm", "captioner.decoder.norm", "NORMS"),
]


@pytest.mark.parametrize("name, module, registry", REGISTRIES, ids=[row[0] for row in REGISTRIES])
def test_a_registered_name_is_accepted(monkeypatch: pytest.MonkeyPatch, name: str, module: str, registry: str) -> None:
    """A new entry of a registry needs no change of the parameters."""
    section, _, key = name.rpartition(".")
    content = {section: {key: "brand_new"}} if section else {key: "brand_new"}
    with pytest.raises(CaptionerError, match=f"{name}='brand_new': it must be one of .*") as caught:
        parse_parameters(content)
    known = getattr(importlib.import_module(module), registry)
    assert ", ".join(known) in caught.value.message
    monkeypatch.setitem(known, "brand_new", None)
    parameters = parse_parameters(content)
    assert getattr(getattr(parameters, section) if section else parameters, key) == "brand_new"
    assert "brand_new" in next(row for row in table().splitlines() if row.startswith(f"| `{name}`"))
    with pytest.raises(CaptionerError, match=f"{name}='brand_nwe': .*brand_new; did you mean brand_new"):
        parse_parameters({section: {key: "brand_nwe"}} if section else {key: "brand_nwe"})


def test_the_defaults_are_registered() -> None:
    """The parser does not check defaults, so that reading the default params.yaml imports no registry."""
    for section in [Parameters(), *vars(Parameters()).values()]:
        for field in dataclasses.fields(section) if dataclasses.is_dataclass(section) else []:
            choices = field_choices(field) if field.metadata else None
            default = field.default if isinstance(field.default, tuple) else (field.default,)
            assert choices is None or set(default) <= set(choices), field.name


def test_reading_the_parameters_does_not_import_torch() -> None:
    code = (
        "import sys; from captioner.parameters import load_parameters; load_parameters(); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_numbers_that_yaml_reads_as_text(tmp_path) -> None:
    """YAML 1.1 takes 1e-3 (no dot) for a string; a user means the number."""
    file = tmp_path / "params.yaml"
    file.write_text("train:\n  learning_rate: 1e-3\nevaluate:\n  beam_sizes: 4\n")
    parameters = load_parameters(file)
    assert parameters.train.learning_rate == 0.001
    assert parameters.evaluate.beam_sizes == (4,)


def test_broken_or_missing_file(tmp_path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(CaptionerError, match="not valid YAML"):
        load_parameters(tmp_path / "broken.yaml")
    with pytest.raises(CaptionerError, match="cannot be read"):
        load_parameters(tmp_path / "absent.yaml")


def test_every_parameter_is_read_somewhere() -> None:
    """A parameter that no code reads would be a dead option."""
    sources = [
        path
        for folder in ("captioner", "stages")
        for path in (ROOT / folder).rglob("*.py")
        if path.parent.name != "parameters"
    ]
    code = "\n".join(path.read_text() for path in sources)
    for name in parameter_names(Parameters):
        leaf = name.rsplit(".", 1)[-1]
        assert f".{leaf}" in code or f'"{leaf}"' in code or "asdict" in code and leaf == "version", name


def test_every_parameter_has_help() -> None:
    for section in [
        Parameters,
        *[
            type(getattr(Parameters(), f.name))
            for f in dataclasses.fields(Parameters)
            if dataclasses.is_dataclass(getattr(Parameters(), f.name))
        ],
    ]:
        for field in dataclasses.fields(section):
            assert field.metadata.get("help") or dataclasses.is_dataclass(getattr(section(), field.name)), field.name


@pytest.mark.parametrize(
    "name",
    [
        "download.root",
        "download.captions",
        "download.split",
        "extract.weights",
        "vocab.vectors",
        "train.init_from",
        "evaluate.ensemble",
    ],
)
def test_a_path_out_of_a_queued_runs_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    section, key = name.split(".")
    for folder, refused in ((tmp_path / ".dvc/tmp/exps/x", True), (tmp_path / "usual", False)):
        folder.mkdir(parents=True)
        (folder / "params.yaml").write_text(f"{section}: {{{key}: ../base}}\n")
        monkeypatch.chdir(folder)
        with (
            pytest.raises(CaptionerError, match=rf"{name}=\.\./base: .*give an absolute path")
            if refused
            else nullcontext()
        ):
            read_parameters()
