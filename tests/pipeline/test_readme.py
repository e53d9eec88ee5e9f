"""Every command of the README and of docs/ runs: in a repository of its own, with tiny data sets in the place of the
reader's."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from captioner.parameters import parse_parameters
from tests.data import ROOT
from tests.pipeline import tiny_data
from tests.pipeline.workspace import Workspace

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)]


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", README, re.M) + ["test-all"]:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_lead_to_files() -> None:
    for page in [*PAGES, ROOT / "data/README.md", ROOT / "CONTRIBUTING.md", ROOT / "samples/README.md"]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def shorten_recipes(workspace: Workspace) -> None:
    """The recipes' sizes and epochs are for hours; the rest of them is kept."""
    for recipe in (workspace.folder / "recipes").iterdir():
        recipe.write_text(
            re.sub(r"(hidden_size|feature_size)=\d+", r"\1=16", re.sub(r"epochs=\d+", "epochs=1", recipe.read_text()))
        )


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").iterdir()), ids=lambda recipe: recipe.name)
def test_recipes_are_options_that_dvc_and_the_program_know(recipe: Path) -> None:
    """DVC refuses a + before a parameter that params.yaml has, and a parameter without one that it lacks."""
    content: dict = {}
    known = yaml.safe_load((ROOT / "params.yaml").read_text())
    for line in recipe.read_text().splitlines():
        option = re.fullmatch(r"-S (\+?)([\w.]+)=(\S+)", line)
        assert option, line
        section, _, name = option[2].rpartition(".")
        assert bool(option[1]) == (name not in (known[section] if section else known)), line
        members = content.setdefault(section, {}) if section else content
        assert name not in members, line
        members[name] = yaml.safe_load(option[3])
    parse_parameters(content, recipe.name)


@pytest.mark.slow
def test_every_command_runs(tmp_path) -> None:
    """What cannot be had in a test is replaced: the reader's folders by tiny data, downloaded weights by random ones,
    the deepest encoder by its smallest sister."""
    workspace = Workspace.create(tmp_path / "repository")
    replacements = {
        "/data/flickr8k": str(tiny_data.flickr8k(tmp_path / "flickr8k")),
        "/data/coco": str(tiny_data.coco2017(tmp_path / "coco")),
        "/data/mine/captions.csv": str(tiny_data.table(tmp_path / "mine")),
        "/data/mine": str(tmp_path / "mine"),
        "/data/remote": str(tmp_path / "remote"),
        "extract.weights=imagenet": "extract.weights=random",
        "extract.weights=pretrained": "extract.weights=random",
        "timm/vit_base_patch16_clip_224.openai": "timm/vit_tiny_patch16_224",
        "encoder=resnet152": "encoder=resnet18",
        "make show": "make -o install show",
    }
    shorten_recipes(workspace)
    workspace.dvc("repro")  # not committed: a command of the README does that
    assert sum(len(block.splitlines()) for block in BLOCKS) >= 20
    for block in BLOCKS:
        for command in block.splitlines():
            command = command.split("#")[0].strip()
            for name, replacement in replacements.items():
                command = command.replace(name, replacement)
            output = workspace.run("bash", "-c", command)
            assert "Traceback" not in output, f"{command}\n{output}"
            if command.startswith("dvc queue start"):
                for _ in range(600):
                    status = workspace.dvc("queue", "status")
                    if not re.search(r"Running|Queued", status):
                        break
                    time.sleep(1)
                assert "Failed" not in status and "Success" in status, status
        workspace.run("git", "reset", "-q", "--hard")
        workspace.dvc("checkout")
