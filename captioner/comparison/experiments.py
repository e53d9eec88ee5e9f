"""Finished experiments: what they were made with and the statistics of their captions, from dvc.lock and the small
results that git keeps beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml

from captioner.comparison.repository import Missing, Repository, Revision
from captioner.errors import CaptionerError
from captioner.metrics.statistics import STATISTICS, Statistics

_LOCK, _SIGNATURE = "dvc.lock", "signature.json"
_SEED = "seed"
_CHECK = "check"  # the stage that reads all of params.yaml, also what changes no result
_OF_THE_MODEL = ("encoder", "decoder", "attention")  # evaluation reads them from the model and writes them down
# Of the signature, what must be alike for scores to be comparable. The Java that runs METEOR and the tokenizer changes
# nothing.
_ALIKE = {
    "split": "scores of the split {theirs}, not {ours}",
    "images": "{theirs} images, not {ours}",
    "references": "{theirs} references, not {ours}",
    "fingerprint": "other images or references",
    "tool": "scored with {theirs}, not {ours}",
    "version": "scored with version {theirs} of the tool, not {ours}",
    "tokenizer": "tokens of {theirs}, not of {ours}",
    "meteor": "METEOR is {theirs}, not {ours}",
}


@dataclass(frozen=True)
class Run:
    """One training run and its evaluation.

    Attributes:
        names: of the revisions that hold it; several where the workspace or a branch holds an experiment's results.
        parameters: dotted name -> value, of all stages; without ``seed``.
        code: path -> hash, of what training and evaluation depended on: modules and data.
        seed: of training.
        signature: of its scores.
        statistics: of the images that the scores are of.
    """

    names: tuple[str, ...]
    parameters: Mapping[str, Any]
    code: Mapping[str, str]
    seed: Any
    signature: Mapping[str, Any]
    statistics: Statistics


def read_runs(
    repository: Repository, names: Sequence[str], results: PurePosixPath
) -> tuple[list[Run], list[tuple[str, str]]]:
    """The named experiments, or all that ``dvc exp show`` lists, without those that cannot be compared with the first.

    Args:
        names: of experiments, branches, tags or commits, or ``workspace``.
        results: the folder that ``evaluate`` writes.

    Returns:
        Runs in the order of their names, each once; and name and reason of those left out.

    Raises:
        CaptionerError: an unknown name, or no experiment is left.
    """
    revisions = [repository.find(name) for name in dict.fromkeys(names)] if names else repository.listed()
    runs: list[Run] = []
    left_out: list[tuple[str, str]] = []
    for revision in revisions:
        try:
            run = _read(repository, revision, results)
        except Missing as error:
            left_out.append((revision.name, str(error)))
            continue
        if runs and (reason := difference(run.signature, runs[0].signature)):
            left_out.append((revision.name, f"{reason}, as {runs[0].names[0]} has"))
            continue
        run = replace(run, statistics=in_order(run.statistics, runs[0].statistics.image_ids)) if runs else run
        index = next((index for index, other in enumerate(runs) if _same(run, other)), None)
        if index is None:
            runs.append(run)
        else:
            runs[index] = replace(runs[index], names=(*runs[index].names, *run.names))
    if not runs:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out)
        raise CaptionerError(f"there is no experiment to show ({reasons})")
    return runs, left_out


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Why scores with these two signatures are not comparable, in words; None where they are."""
    for key, words in _ALIKE.items():
        if theirs.get(key) != ours.get(key):
            return words.format(theirs=theirs.get(key), ours=ours.get(key))
    return None


def read_lock(repository: Repository, revision: Revision) -> tuple[dict[str, Any], dict[str, str]]:
    """A revision's stages as its dvc.lock has them, and the path of every out with its hash.

    Raises:
        Missing: there is no whole dvc.lock.
    """
    try:
        stages = yaml.load(repository.read(revision, _LOCK), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
        return stages, {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Missing(f"its dvc.lock is damaged ({type(error).__name__}: {error}); run it again") from error


def read_result(repository: Repository, revision: Revision, path: str, outs: Mapping[str, str]) -> str:
    """A small result, which git keeps.

    Args:
        outs: path -> hash, of the revision's dvc.lock.

    Raises:
        Missing: the revision lacks it, or has another one than its dvc.lock names.
    """
    if path not in outs:
        raise Missing(f"its dvc.lock names no {path}: an older version made it, or it is unfinished; run it again")
    content = repository.read(revision, path)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != outs[path]:
        raise Missing(f"{path} is not the one that its dvc.lock names; run dvc repro, or commit both")
    return content.decode(errors="replace")


def _read(repository: Repository, revision: Revision, results: PurePosixPath) -> Run:
    """One revision's run.

    Raises:
        Missing: it has no whole evaluation.
    """
    signature_path, statistics_path = str(results / _SIGNATURE), str(results / STATISTICS)
    try:
        stages, outs = read_lock(repository, revision)
        signature_text, text = (
            read_result(repository, revision, path, outs) for path in (signature_path, statistics_path)
        )
        parameters = {
            name: value
            for key, stage in stages.items()
            for values in (stage.get("params", {}) if key != _CHECK else {}).values()
            for name, value in _flat(values)
        }
        seed = parameters.pop(_SEED)
        code = {dep["path"]: dep["md5"] for stage in ("train", "evaluate") for dep in stages[stage].get("deps", ())}
        code = {
            path: md5
            for path, md5 in code.items()
            if path not in {out["path"] for out in stages["train"].get("outs", ())}
        }
        signature = dict(json.loads(signature_text))
        parameters |= {name: signature[name] for name in _OF_THE_MODEL if name in signature}
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Missing(
            f"its dvc.lock or {signature_path} is damaged ({type(error).__name__}: {error}); run it again"
        ) from error
    try:
        statistics = Statistics.from_json(text, statistics_path)
    except CaptionerError as error:
        raise Missing(error.message) from error
    if len(statistics.image_ids) != signature.get("images"):
        raise Missing(
            f"{statistics_path} has {len(statistics.image_ids)} images, {signature_path} {signature.get('images')}; "
            "run it again"
        )
    return Run((revision.name,), parameters, code, seed, signature, statistics)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested parameters."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _same(a: Run, b: Run) -> bool:
    """Two names of one result: the same settings, seed and captions."""
    return (a.parameters, a.code, a.seed) == (b.parameters, b.code, b.seed) and np.array_equal(
        a.statistics.values, b.statistics.values
    )


def in_order(statistics: Statistics, image_ids: tuple[str, ...]) -> Statistics:
    """The rows in the order of ``image_ids``, the same images."""
    if statistics.image_ids == image_ids:
        return statistics
    indices = {image: index for index, image in enumerate(statistics.image_ids)}
    return replace(statistics, image_ids=image_ids, values=statistics.values[[indices[image] for image in image_ids]])
