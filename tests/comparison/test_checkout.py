"""The commit of the code, as a report names it."""

from __future__ import annotations

import os
import subprocess

import pytest

from captioner.comparison.repository import Checkout, checkout


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Runs git in a folder of its own, with none of the user's settings."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
        "GIT_COMMITTER_DATE": "2026-01-02T03:04:05+00:00",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return run


def test_commit_date_and_changed_files(git, tmp_path):
    assert checkout() is None  # no repository
    git("init", "--quiet")
    assert checkout() is None  # no commit
    (tmp_path / "results").mkdir()
    for name in ("params.yaml", "dvc.lock", "results/metrics.json", "ein Plan.txt"):
        (tmp_path / name).write_text("1")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    head = git("rev-parse", "HEAD")
    assert checkout() == Checkout(head, "2026-01-02", [])
    for name in ("dvc.lock", "results/metrics.json", "untracked"):  # what the pipeline writes
        (tmp_path / name).write_text("2")
    assert checkout() == Checkout(head, "2026-01-02", [])
    for name in ("params.yaml", "ein Plan.txt"):
        (tmp_path / name).write_text("2")
    git("add", "params.yaml")
    assert checkout() == Checkout(head, "2026-01-02", ["ein Plan.txt", "params.yaml"])


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert checkout() is None
