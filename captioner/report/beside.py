"""Several experiments on one page: their pages' data put side by side, and how far chance explains their
differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from captioner.comparison import Run, compare
from captioner.comparison.experiments import difference, in_order
from captioner.errors import CaptionerError
from captioner.metrics.statistics import Statistics

_MOST = 6  # experiments on a page: colours that are told apart


@dataclass(frozen=True)
class Source:
    """One experiment to show.

    Attributes:
        name: its folder or revision, as it was asked for.
        page: the data of its own page.
        statistics: of its captions' scores; rows in any order.
    """

    name: str
    page: dict[str, Any]
    statistics: Statistics


def side_by_side(sources: Sequence[Source]) -> dict[str, Any]:
    """Data of a page with every experiment; of one source, its own page's.

    The text is of every image. Shown are the images that every page shows, in the order of the first: they are sampled
    by their ids alone, so that pages made with one ``evaluate.report_images`` show the same.

    Raises:
        CaptionerError: the scores are not comparable, no image is on every page, or too many experiments.
    """
    first = sources[0]
    if len(sources) == 1:
        return first.page
    if len(sources) > _MOST:
        raise CaptionerError(f"{len(sources)} experiments: a page shows {_MOST} at most; name fewer")
    own = [source.page["experiments"][0] for source in sources]
    for source, experiment in zip(sources[1:], own[1:], strict=True):
        if reason := difference(experiment["signature"], own[0]["signature"]):
            raise CaptionerError(
                f"{source.name}: {reason}, as {first.name} has; only experiments on the same images stand side by side"
            )
    sampled = [{image["id"] for image in source.page["images"] if "webp" in image} for source in sources]
    common = [image for image in first.page["images"] if all(image["id"] in sample for sample in sampled)]
    if not common and all(sampled):
        raise CaptionerError(
            f"{', '.join(source.name for source in sources)}: no image is on every page; evaluate them with one "
            "evaluate.report_images"
        )
    shown = {image["id"] for image in common}
    others = [
        {name: image[name] for name in ("id", "name", "references")}
        for image in first.page["images"]
        if image["id"] not in shown
    ]
    images = [*common, *others]
    experiments = []
    for source, experiment in zip(sources, own, strict=True):
        captions = {
            image["id"]: caption if image["id"] in shown else {**caption, "attention": None}
            for image, caption in zip(source.page["images"], experiment["captions"], strict=True)
        }
        name = f"{source.name}: {experiment['name']}"
        experiments.append({**experiment, "name": name, "captions": [captions[image["id"]] for image in images]})
    return {
        "title": f"{first.page['dataset']}: {len(sources)} experiments side by side",
        "dataset": first.page["dataset"],
        "total": first.page["total"],
        "images": images,
        "experiments": experiments,
        "pairs": _pairs(sources, own),
    }


def _pairs(sources: Sequence[Source], experiments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences of each two experiments, as ``captioner compare`` has them; every experiment stands for itself, other
    seeds too."""
    order = sources[0].statistics.image_ids
    runs = [
        Run((source.name,), {}, {"page": str(index)}, None, experiment["signature"], in_order(source.statistics, order))
        for index, (source, experiment) in enumerate(zip(sources, experiments, strict=True))
    ]
    return [
        {
            "first": pair.first,
            "second": pair.second,
            "differences": {
                metric: {name: round(value, 4) for name, value in vars(found).items()}
                for metric, found in pair.differences.items()
            },
        }
        for pair in compare(runs).pairs
    ]
