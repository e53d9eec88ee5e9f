"""Finished experiments as folders or as revisions of the project, read for a page of several."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from captioner.comparison.experiments import read_lock, read_result
from captioner.comparison.repository import Missing, Repository
from captioner.errors import CaptionerError
from captioner.metrics.statistics import STATISTICS, Statistics
from captioner.report.beside import Source
from captioner.report.page import read_page

_PAGE, _STATISTICS = "report/index.html", f"evaluate/{STATISTICS}"  # within a folder of results


def read_sources(names: Sequence[str], results: Path) -> tuple[list[Source], list[tuple[str, str]]]:
    """The experiments of these names, each once; a revision whose results are not on this machine is left out.

    Args:
        names: folders of results (with ``report/`` and ``evaluate/``), else experiments, branches, tags or commits, or
            ``workspace``.
        results: the pipeline's own folder of results, in which a revision is looked up.

    Returns:
        The experiments, and name and reason of those left out.

    Raises:
        CaptionerError: a name is neither, a report is damaged, a folder has none, or no experiment is left.
    """
    repository: Repository | None = None
    sources, left_out = [], []
    for name in dict.fromkeys(names):
        if Path(name).is_dir():
            sources.append(_folder(name, Path(name)))
        else:
            repository = repository or Repository()
            try:
                sources.append(_revision(name, repository, results))
            except Missing as error:
                left_out.append((name, str(error)))
    if not sources:
        raise CaptionerError("; ".join(f"{name}: {reason}" for name, reason in left_out))
    return sources, left_out


def _folder(name: str, folder: Path) -> Source:
    def read(path: str) -> str:
        try:
            return (folder / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "no text"
            raise CaptionerError(
                f"{folder / path}: cannot be read ({why}); run the evaluate stage, or name a folder of results"
            ) from error

    source = _source(name, read)
    seconds = {
        stage: found
        for stage in ("train", "evaluate")
        if (found := _seconds(folder / stage / "timing.json")) is not None
    }
    source.page["experiments"][0]["seconds"] = (
        seconds or None
    )  # times are never the same twice, so the stage leaves them out of its page
    return source


def _revision(name: str, repository: Repository, results: Path) -> Source:
    revision = repository.find(name)

    _, outs = read_lock(repository, revision)

    def read(path: str) -> str:
        whole = (results / path).as_posix()
        if path == _STATISTICS:
            return read_result(repository, revision, whole, outs)
        if whole not in outs:
            raise Missing(f"its dvc.lock names no {whole}; run it again")
        return repository.read_out(revision, whole, outs[whole]).decode("utf-8", errors="replace")

    return _source(name, read)


def _source(name: str, read: Callable[[str], str]) -> Source:
    page, statistics = (
        read_page(read(_PAGE), f"{name}: {_PAGE}"),
        Statistics.from_json(read(_STATISTICS), f"{name}: {_STATISTICS}"),
    )
    if len(page["experiments"]) != 1:
        raise CaptionerError(f"{name}: {_PAGE} is a page of several experiments; name what each was made from")
    if len(statistics.image_ids) != page["total"]:
        raise CaptionerError(
            f"{name}: {_PAGE} is of {page['total']} images, {_STATISTICS} of {len(statistics.image_ids)}; run the "
            "evaluate stage again"
        )
    return Source(name, page, statistics)


def _seconds(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
