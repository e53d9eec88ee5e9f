"""Does a run see what is in a scene, and where? python -m benchmarks.scenes

Reads what ``dvc repro`` left for the data set scenes: the test captions, the scores and ``download.seed``. The scenes
themselves are described afresh from the seed, so that truth does not come from any reference caption.
The last line is a JSON list of three results: the share of captions that name both kinds; BLEU-4; and of the captions
that say of a scene's two kinds, one of which stands to the left of the other, which one it is, the share that is right
(a coin would be in half of them).
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

BOTH_TARGET, BLEU_TARGET = 0.85, 0.65
OPPOSITE = {"left": "right", "right": "left"}
KIND_OF = {word: kind.name for kind in scenes.KINDS for pair in kind.words for word in pair}
REMEDY = "run `dvc repro` with dataset=scenes first"


def read(path: Path, parse=json.loads):
    """The parsed contents of a file that a run leaves.

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
    """How many captions there are and name both kinds, in all, by relation and by number of things.

    Args:
        seed: ``download.seed``.
        indices: image id -> scene index of every test image.
        results: COCO results, ``[{"image_id": ..., "caption": ...}]``.
        path: where the results come from, for messages.

    Returns:
        Two counters over (heading, value) pairs: of captions, and of captions that name both.

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
    """What a caption says of left and right: ``left`` stands to the left of ``right``, both names of kinds."""

    left: str | None
    right: str | None


def statement(caption: str) -> Statement | None:
    """Which kind is to the left of which in "... left of ..." or "... right of ..."; None where a caption says neither.

    The kinds are the last one named before these words and the first one after; None where there is none.
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
    """How captions fare that say what is to the left or right of what; arguments as of ``both_named``.

    Returns:
        A counter. ``everywhere``: captions of any scene that say it of anything. ``scenes``: those whose two kinds
        stand to the left and right of one another; ``stated``: their captions that say it of these two; ``true``: the
        ones of them that are right; ``left``: the ones whose scene has its first kind, by the order in which kinds are
        named, on the left.
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
    """One result: a share of one, and whether it reaches the target, where there is one."""
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
    click.echo(f"{'BLEU-4':24s}{'':10s}{bleu:12.3f}")
    stated = max(1, side["stated"])
    usual = max(side["left"], side["stated"] - side["left"]) / stated
    click.echo(
        f"{'left of, right of: true':24s}{side['stated']:10d}{side['true'] / stated:12.3f}  (a coin 0.5, always the more frequent order {usual:.3f})"
    )
    click.echo(
        f"(of the captions of {side['scenes']} scenes with one kind left of the other; in all {side['everywhere']} captions say left of or right of)"
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
    """BLEU-4 as a share of one, from the metrics of a run.

    Raises:
        CaptionerError: it is absent or not a number.
    """
    value = metrics.get("bleu_4") if isinstance(metrics, dict) else None
    if not isinstance(value, (int, float)):
        raise CaptionerError(f"{path} holds no number bleu_4: {REMEDY}")
    return float(value)


if __name__ == "__main__":
    main()
