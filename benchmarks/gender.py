"""Who a model calls man or woman, for a model card:

    python -m benchmarks.gender results/evaluate/per_image.csv data/flickr8k/captions.json

An image counts as one of men (women) where at least three of its reference captions have a word of the one group and
none has a word of the other. The table has what the model's caption of these images says.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import click

MAN = ("man", "men", "boy", "boys", "guy", "guys", "gentleman", "male", "father", "son", "he", "his", "him")
WOMAN = ("woman", "women", "girl", "girls", "lady", "ladies", "female", "mother", "daughter", "she", "her")
GROUPS = {"man": frozenset(MAN), "woman": frozenset(WOMAN)}
BOTH, NEITHER = "both", "neither"


def group(words: set[str]) -> str:
    """man, woman, both or neither: whose words a caption has."""
    found = [name for name, theirs in GROUPS.items() if words & theirs]
    return BOTH if len(found) == 2 else found[0] if found else NEITHER


def people(references: list[str]) -> str | None:
    """``man`` or ``woman`` where the references of an image agree, else None."""
    said = Counter(group(set(caption.lower().split())) for caption in references)
    for name, other in (("man", "woman"), ("woman", "man")):
        if said[name] >= 3 and not said[other] and not said[BOTH]:
            return name
    return None


@click.command(help=__doc__)
@click.argument("per_image", type=click.Path(exists=True, path_type=Path))
@click.argument("captions", type=click.Path(exists=True, path_type=Path))
def main(per_image: Path, captions: Path) -> None:
    references: dict[int, list[str]] = defaultdict(list)
    for row in json.loads(captions.read_text(encoding="utf-8"))["annotations"]:
        references[row["image_id"]].append(row["caption"])
    said: dict[str, Counter[str]] = {name: Counter() for name in GROUPS}
    with per_image.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            actual = people(references[int(row["image_id"])])
            if actual is not None:
                said[actual][group(set(row["caption"].lower().split()))] += 1
    columns = [*GROUPS, NEITHER, BOTH]
    click.echo(f"| references say | images | {' | '.join(f'model says {column}' for column in columns)} |")
    click.echo("|---|" + "---|" * (len(columns) + 1))
    for name, counts in said.items():
        total = sum(counts.values())
        cells = [f"{counts[column]} ({counts[column] / max(total, 1):.0%})" for column in columns]
        click.echo(f"| {name} | {total} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
