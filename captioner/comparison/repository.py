"""Revisions of a DVC project by the names that ``dvc exp show`` lists, and the files that they hold: git and DVC's
cache, no server."""

from __future__ import annotations

import difflib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner import paths
from captioner.errors import CaptionerError

WORKSPACE = "workspace"
# DVC keeps every experiment that ran as a git reference: refs/exps/<2 digits>/<the other digits of the commit it began
# from>/<name>.
_EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38,62})/(\S+)")


@dataclass(frozen=True)
class Revision:
    """One state of the project.

    Attributes:
        name: as it was asked for or as DVC lists it.
        commit: its hash; None for the workspace.
    """

    name: str
    commit: str | None


@dataclass(frozen=True)
class Checkout:
    """The code of the working directory.

    Attributes:
        hash: of the commit that is checked out.
        date: of that commit, YYYY-MM-DD.
        changed: tracked files that differ from it, but for those that the pipeline itself writes.
    """

    hash: str
    date: str
    changed: list[str]


def checkout() -> Checkout | None:
    """The commit of the working directory; None where git is not installed or there is no repository with a commit."""
    try:
        found = _git("log", "-1", "--format=%H %cs")
        written = (f":(exclude){name}" for name in ("dvc.lock", paths.RESULTS.as_posix()))
        changed = _git("diff", "--name-only", "--relative", "-z", "HEAD", "--", ".", *written)
    except FileNotFoundError:
        return None
    if found is None or changed is None:
        return None
    commit, date = found.split()[-2:]
    return Checkout(commit, date, [name for name in changed.split("\0") if name])


class Missing(Exception):
    """A file that a revision lacks; the message says why and what helps."""


class Repository:
    """The git and DVC repository of the working directory, which is the project's top folder.

    Raises:
        CaptionerError: git is not installed, or the folder is in no repository that has a commit.
    """

    def __init__(self) -> None:
        self._cache: Any = None
        try:
            self._head = _git("rev-parse", "--verify", "--quiet", "HEAD")
        except FileNotFoundError:
            raise CaptionerError("git: it is not on the PATH; install it") from None
        if self._head is None:
            raise CaptionerError(
                f"{Path.cwd()}: in no git repository with a commit; run this in the project's top folder"
            )

    def listed(self) -> list[Revision]:
        """What ``dvc exp show`` lists: the workspace, the current commit, and the experiments that began from it,
        newest first."""
        branch = _git("symbolic-ref", "--quiet", "--short", "HEAD")
        head = Revision(branch or (self._head or "")[:7], self._head)
        return [Revision(WORKSPACE, None), head, *(found for found, base in self._experiments() if base == self._head)]

    def find(self, name: str) -> Revision:
        """The revision of that name: the workspace, an experiment, or anything that git knows as a commit.

        Raises:
            CaptionerError: there is none, or several experiments have it.
        """
        if name == WORKSPACE:
            return Revision(name, None)
        known = self._experiments()
        same = [(found, base) for found, base in known if found.name == name]
        same = [pair for pair in same if pair[1] == self._head] or same
        if len({found.commit for found, _ in same}) > 1:
            commits = ", ".join((found.commit or "")[:7] for found, _ in same)
            raise CaptionerError(f"{name}: several experiments have this name; give one by its commit: {commits}")
        if same:
            return same[0][0]
        commit = None if name.startswith("-") else _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if commit:
            return Revision(name, commit)
        heads = (_git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or "").splitlines()
        names = list(dict.fromkeys([*(found.name for found, _ in known), *heads, WORKSPACE]))
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:5]
        raise CaptionerError(
            f"{name!r}: no experiment, branch, tag or commit has this name; near ones are {', '.join(near)}; `dvc "
            "exp list --all-commits` has all"
        )

    def read(self, revision: Revision, path: str) -> bytes:
        """A file that is in git.

        Raises:
            Missing: the revision lacks it.
        """
        content: bytes | None
        if revision.commit is None:
            content = Path(path).read_bytes() if Path(path).is_file() else None
        else:
            content = _run("cat-file", "blob", f"{revision.commit}:./{path}")
        if content is None:
            raise Missing(
                f"it has no {path}; " + ("run dvc repro" if revision.commit is None else "no run is committed")
            )
        return content

    def read_out(self, revision: Revision, path: str, md5: str) -> bytes:
        """A file that DVC keeps, known by its hash: from the cache, else from the workspace or a remote.

        Raises:
            Missing: it is in none of them.
        """
        from dvc.api import read
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            if self._cache is None:
                self._cache = Repo().cache.local
            kept = Path(self._cache.oid_to_path(md5))
            if kept.is_file():
                return kept.read_bytes()
            return read(path, rev=revision.commit, mode="rb")
        except (DvcException, OSError) as error:
            raise Missing(
                f"{path} is in neither DVC's cache nor a remote ({error}); dvc exp pull or dvc fetch it, or run it "
                "again"
            ) from error

    def _experiments(self) -> list[tuple[Revision, str]]:
        """Every experiment that ran and the commit that it began from, newest first."""
        lines = (
            _git("for-each-ref", "--sort=-creatordate", "--format=%(objectname) %(refname)", "refs/exps") or ""
        ).splitlines()
        found = []
        for line in lines:
            commit, _, reference = line.partition(" ")
            if match := _EXPERIMENT.fullmatch(reference):
                found.append((Revision(match[3], commit), match[1] + match[2]))
        return found


def _git(*arguments: str) -> str | None:
    found = _run(*arguments)
    return None if found is None else found.decode(errors="replace").strip()


def _run(*arguments: str) -> bytes | None:
    """What git says; None where it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, stdin=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else None
