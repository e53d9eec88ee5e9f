"""Bootstrap: resamples a second of the comparison of two systems by all metrics, against a loop over resamples and
images.

    python -m benchmarks.compare                  # 1,000 images, 1,000 resamples; the loop has fewer, rates are
    compared

The loop draws images one by one, adds up their statistics in Python and applies the formulas to the sums: what one
would write first, with the statistics at hand. Scoring every resample's captions anew would take a second and more for
each.
"""

from __future__ import annotations

import random
import time

import click
import numpy as np

from benchmarks.report import compare, print_results
from captioner.comparison import resample
from captioner.metrics import bleu, meteor_statistics
from captioner.metrics.statistics import Statistics


def make_table(images: int, seed: int) -> Statistics:
    """Statistics with all columns; their numbers are drawn, for time does not depend on them."""
    columns = (*bleu.COLUMNS, *meteor_statistics.COLUMNS, "rouge_l", "cider_d")
    values = np.random.default_rng(seed).integers(1, 12, (images, len(columns))).astype(np.float64)
    return Statistics(tuple(map(str, range(images))), columns, values)


def loop(tables: list[Statistics], resamples: int) -> int:
    """Score ``resamples`` resamples of every table, one at a time."""
    rows = [table.values.tolist() for table in tables]
    images, draw = len(rows[0]), random.Random(1)
    for _ in range(resamples):
        drawn = [draw.randrange(images) for _ in range(images)]
        for table, values in zip(tables, rows, strict=True):
            sums = [0.0] * len(table.columns)
            for image in drawn:
                for index, value in enumerate(values[image]):
                    sums[index] += value
            table.scores(np.array(sums), images)
    return resamples


@click.command(help=__doc__)
@click.option("--images", default=1000)
@click.option("--resamples", default=1000)
@click.option("--loop-resamples", default=20, help="resamples in each round of the loop")
@click.option("--repeats", default=5)
def main(images: int, resamples: int, loop_resamples: int, repeats: int) -> None:
    tables = [make_table(images, seed) for seed in (1, 2)]
    start = time.perf_counter()
    resample(tables, resamples)
    seconds = time.perf_counter() - start
    name = f"{resamples:,} resamples of 2 systems on {images:,} images: {seconds:.2f} s"
    ours = lambda: len(resample(tables, resamples)[0]["bleu_4"])  # noqa: E731
    print_results(
        [
            compare(
                name,
                ours,
                lambda: loop(tables, loop_resamples),
                1.0,
                repeats,
                "resamples/s",
                seconds=round(seconds, 3),
                met_30_s=seconds <= 30,
            )
        ]
    )


if __name__ == "__main__":
    main()
