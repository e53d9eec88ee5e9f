"""Checks captions against the content of the scenes: python -m benchmarks.scenes

Reads the outputs of ``dvc repro`` for the data set scenes: the test captions, the scores and ``download.seed``. The
scenes are described again from the seed, so that the truth does not depend on a reference caption.
The last line is a JSON list of three results: the fraction of captions that mention both kinds; BLEU-4; and the
fraction of correct statements "left of" or "right of" about the two kinds of scenes with that relation (chance is 0.5).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import click
import yaml

from captioner.errors import CaptionerError
from captioner.images import scenes

BOTH_TARGET, BLEU_TARGET = 0.85, 65.0  # a share of captions, and percent
OPPOSITE = {"left": "right", "right": "left"}
KIND_OF = {word: kind.name for kind in scenes.KINDS for pair in kind.words for word in pair}
REMEDY = "run `dvc repro` with dataset=scenes first"


def read(path: Path, parse=json.loads):
    """The parsed content of an output file of a run.

    Raises:
        CaptionerError: the file is missing or cannot be parsed.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaptionerError(f"{path}: {error.strerror}: {REMEDY}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise CaptionerError(f"{path} cannot be parsed ({str(error)[:80]}): {REMEDY}") from error


def scene_indices(data: dict, path: Path) -> dict[int, int]:
    """Image id -> scene index for the test images, from file names such as ``scene-000012.jpg``."""
    indices = {}
    try:
        for image in data["images"]:
            if image["split"] == "test":
                indices[image["id"]] = int(Path(image["file_name"]).stem.removeprefix("scene-"))
    except (KeyError, TypeError, ValueError) as error:
        raise CaptionerError(f"{path} is not the captions file of the data set scenes ({error!r}): {REMEDY}") from error
    if not indices:
        raise CaptionerError(f"{path} has no image of the test split: raise download.scenes and {REMEDY}")
    return indices


def both_named(seed: int, indices: dict[int, int], results: list[dict], path: Path):
    """Count captions, and captions that mention both kinds: in total, by relation, background and number of objects.

    Args:
        seed: ``download.seed``.
        indices: image id -> scene index of every test image.
        results: COCO results, ``[{"image_id": ..., "caption": ...}]``.
        path: the file of the results, for messages.

    Returns:
        Two counters over (heading, value) pairs: of captions, and of captions that mention both kinds.

    Raises:
        CaptionerError: a test image has no caption, or a caption no test image.
    """
    try:
        said = {row["image_id"]: row["caption"] for row in results}
    except (KeyError, TypeError) as error:
        raise CaptionerError(f"{path} is not a COCO results file ({error!r}): {REMEDY}") from error
    if said.keys() != indices.keys():
        odd = sorted(said.keys() ^ indices.keys())
        raise CaptionerError(f"{path} and the test split differ in {len(odd)} images, such as {odd[0]}: {REMEDY}")
    asked, named = Counter(), Counter()
    for image_id, index in indices.items():
        scene = scenes.describe(seed, index)
        things = scene.first.count + scene.second.count
        right = scenes.mentions_both(said[image_id], scene)
        for key in (
            ("all", ""),
            ("relation", scene.relation),
            ("background", scene.background),
            ("things", str(things)),
        ):
            asked[key] += 1
            named[key] += right
    return asked, named


class Statement(NamedTuple):
    """A statement of a caption: the kind ``left`` is to the left of the kind ``right``."""

    left: str | None
    right: str | None


def statement(caption: str) -> Statement | None:
    """The statement in "... left of ..." or "... right of ..."; None if a caption contains neither.

    The kinds are the last one before these words and the first one after them; None if there is none.
    """
    found = re.fullmatch(r"(.*)\b(left|right) of\b(.*)", caption.lower())
    if not found:
        return None
    before, after = (
        [KIND_OF[word] for word in re.findall(r"\w+", part) if word in KIND_OF] for part in (found[1], found[3])
    )
    pair = (before[-1] if before else None, after[0] if after else None)
    return Statement(*(pair if found[2] == "left" else pair[::-1]))


def sides(seed: int, indices: dict[int, int], results: list[dict]) -> Counter:
    """Check statements about left and right; arguments as in ``both_named``.

    Returns:
        A counter. ``everywhere``: captions of all scenes with such a statement. ``scenes``: scenes with the relation
        left or right; ``stated``: their captions with a statement about their two kinds; ``true``: correct ones;
        ``left``: those whose scene has its first kind on the left.
    """
    said = {row["image_id"]: row["caption"] for row in results}
    counts = Counter()
    for image_id, index in indices.items():
        scene, claim = scenes.describe(seed, index), statement(said[image_id])
        counts["everywhere"] += claim is not None
        if scene.relation not in OPPOSITE:
            continue
        order = (scene.first.kind, scene.second.kind)
        truth = Statement(*(order if scene.relation == "left" else order[::-1]))
        counts["scenes"] += 1
        if claim in (truth, truth[::-1]):
            counts["stated"] += 1
            counts["true"] += claim == truth
            counts["left"] += scene.relation == "left"
    return counts


def outcome(name: str, ratio: float, target: float | None, **more) -> dict:
    """One result: a fraction, and whether it reaches the target, if there is one."""
    return {
        "name": name,
        "ratio": round(ratio, 4),
        "target": target,
        "met": None if target is None else ratio >= target,
        **more,
    }


@click.command(help=__doc__.split("\n")[0])
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), default=Path("."), help="The project's folder."
)
def main(root: Path) -> None:
    parameters = read(root / "params.yaml", yaml.safe_load)
    try:
        seed = int(parameters["download"]["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise CaptionerError(f"{root / 'params.yaml'} has no whole number download.seed: restore that key") from error
    truth, said = root / "data" / "scenes" / "captions.json", root / "results" / "evaluate" / "captions.json"
    indices, results = scene_indices(read(truth), truth), read(said)
    asked, named = both_named(seed, indices, results, said)
    side = sides(seed, indices, results)
    scores = root / "results" / "evaluate" / "metrics.json"
    bleu = bleu_4(read(scores), scores)
    click.echo(f"{'':24s}{'captions':>10s}{'both kinds':>12s}")
    for key in sorted(asked):
        click.echo(f"{' '.join(key):24s}{asked[key]:10d}{named[key] / asked[key]:12.3f}")
    click.echo(f"{'BLEU-4':24s}{'':10s}{bleu:12.1f}")
    stated = max(1, side["stated"])
    usual = max(side["left"], side["stated"] - side["left"]) / stated
    click.echo(
        f"{'left of, right of: true':24s}{side['stated']:10d}{side['true'] / stated:12.3f}  (a coin 0.5, always the "
        f"more frequent order {usual:.3f})"
    )
    click.echo(
        f"(of the captions of {side['scenes']} scenes with one kind left of the other; in all {side['everywhere']} "
        "captions say left of or right of)"
    )
    both = named["all", ""] / asked["all", ""]
    rows = [
        outcome("scenes: captions that name both kinds", both, BOTH_TARGET, captions=asked["all", ""]),
        outcome("scenes: BLEU-4", bleu, BLEU_TARGET, captions=asked["all", ""]),
        outcome(
            "scenes: left of and right of that are true",
            side["true"] / stated,
            None,
            captions=side["stated"],
            chance=0.5,
        ),
    ]
    click.echo(json.dumps(rows))


def bleu_4(metrics: dict, path: Path) -> float:
    """BLEU-4 in percent from the metrics of a run.

    Raises:
        CaptionerError: it is absent or not a number, or the file is of a version that had fractions.
    """
    value = metrics.get("bleu_4") if isinstance(metrics, dict) and "signature" not in metrics else None
    if not isinstance(value, (int, float)):
        raise CaptionerError(f"{path} holds no bleu_4 in percent: {REMEDY}")
    return float(value)


if __name__ == "__main__":
    main()
