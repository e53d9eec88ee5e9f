"""A copy of this project in a git repository of its own, with tiny parameters, for runs with a real ``dvc``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.data import ROOT

TINY = {
    "download": {"scenes": 60},
    "vocab": {"min_count": 1},
    "train": {"hidden_size": 16, "feature_size": 16, "epochs": 1},
    "evaluate": {"beam_sizes": [1, 2]},
    "runtime": {"workers": 1, "threads": 1},
}
STAGES = ("download", "extract", "vocab", "train", "evaluate")  # besides check, which runs after every change
_KEPT = (
    "stages",
    "captioner",
    "sources",
    "benchmarks",
    "recipes",
    "samples",
    "dvc.yaml",
    "params.yaml",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    ".gitignore",
    ".dvcignore",
    "data/README.md",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvc/plots",
)


class Workspace:
    """A git and DVC repository in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, **parameters: object) -> Workspace:
        """Copy the project to ``folder`` with the tiny parameters, updated by ``parameters``, and commit it."""
        for name in _KEPT:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "page.html"))
            elif source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        workspace = cls(folder)
        workspace.set_parameters({**TINY, **parameters})
        workspace.run("git", "init", "-q", "-b", "main")
        workspace.run("git", "config", "user.email", "test@example.org")
        workspace.run("git", "config", "user.name", "test")
        workspace.commit("start")
        return workspace

    def set_parameters(self, changes: dict) -> None:
        """Update params.yaml; a dictionary updates its section."""
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            if isinstance(value, dict):
                content[key].update(value)
            else:
                content[key] = value
        # DVC writes null as nothing; written so from the start, going back to a value leaves no difference
        path.write_text(yaml.safe_dump(content, sort_keys=False).replace(": null", ":"))

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the repository with this interpreter's programs first; its whole output."""
        folder = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": "",
            "DVC_NO_ANALYTICS": "1",
            "COLUMNS": "400",
        }
        environment.pop("GIT_DIR", None)
        done = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def dvc(self, *arguments: str, check: bool = True) -> str:
        """Run ``dvc``."""
        return self.run("dvc", *arguments, check=check)

    def ran(self, output: str) -> list[str]:
        """The stages but ``check`` that an output of ``dvc repro`` or ``dvc exp run`` shows as executed (neither
        unchanged nor restored)."""
        return [stage for stage in re.findall(r"Running stage '(\w+)'", output) if stage != "check"]

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def status(self) -> str:
        """``git status`` in short form; empty where the tree is clean."""
        return self.run("git", "status", "--porcelain")
