"""Does the default run see what is in a scene? python -m benchmarks.scenes

Reads what ``dvc repro`` left for the data set scenes: the test captions, the scores and ``download.seed``. The scenes
themselves are described afresh from the seed, so that truth does not come from any reference caption.
The last line is a JSON list of two results: the share of captions that name both kinds, and BLEU-4.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click
import yaml

from captioner.errors import CaptionerError
from captioner.images import scenes

BOTH_TARGET, BLEU_TARGET = 0.85, 0.65
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
        for key in (("all", ""), ("relation", scene.relation), ("background", scene.background), ("things", str(things))):
            asked[key] += 1
            named[key] += right
    return asked, named


def outcome(name: str, ratio: float, target: float, **more) -> dict:
    """One result: a share of one, and whether it reaches the target."""
    return {"name": name, "ratio": round(ratio, 4), "target": target, "met": ratio >= target, **more}


@click.command(help=__doc__.split("\n")[0])
@click.option("--root", type=click.Path(path_type=Path, file_okay=False), default=Path("."), help="The project's folder.")
def main(root: Path) -> None:
    parameters = read(root / "params.yaml", yaml.safe_load)
    try:
        seed = int(parameters["download"]["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise CaptionerError(f"{root / 'params.yaml'} has no whole number download.seed: restore that key") from error
    truth, said = root / "data" / "scenes" / "captions.json", root / "results" / "evaluate" / "captions.json"
    asked, named = both_named(seed, scene_indices(read(truth), truth), read(said), said)
    scores = root / "results" / "evaluate" / "metrics.json"
    bleu = bleu_4(read(scores), scores)
    click.echo(f"{'':24s}{'captions':>10s}{'both kinds':>12s}")
    for key in sorted(asked):
        click.echo(f"{' '.join(key):24s}{asked[key]:10d}{named[key] / asked[key]:12.3f}")
    click.echo(f"{'BLEU-4':24s}{'':10s}{bleu:12.3f}")
    both = named["all", ""] / asked["all", ""]
    results = [
        outcome("scenes: captions that name both kinds", both, BOTH_TARGET, captions=asked["all", ""]),
        outcome("scenes: BLEU-4", bleu, BLEU_TARGET, captions=asked["all", ""]),
    ]
    click.echo(json.dumps(results))


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
