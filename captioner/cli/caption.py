"""``captioner caption``: what a trained model says of any images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner import paths

if TYPE_CHECKING:
    from captioner.captioning import ImageCaptions

_MANY = 100  # images from which on progress is shown, where it does not stand between captions


@click.command("caption")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER...")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=paths.MODELS,
    show_default=True,
    help="Folder of a trained model.",
)
@click.option(
    "--beam", type=click.IntRange(1, 100), default=5, show_default=True, help="Beam size; 1 is greedy search."
)
@click.option(
    "--n-best",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="Captions an image, at most the beam size.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@click.option(
    "--attention",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Folder for PNGs of where the decoder looked for each word.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N; auto: a GPU where there is one.")
@click.pass_context
def command(
    context: click.Context,
    images: tuple[str, ...],
    model: Path,
    beam: int,
    n_best: int,
    as_json: bool,
    attention: Path | None,
    device: str,
) -> None:
    """Caption images with a trained model.

    Every IMAGE, and every image in a FOLDER and below it, gets its captions with their log-probabilities (natural
    logarithms), in the order of log-probability per word: a sum over words alone would put the shortest first. An
    image that cannot be read gets a line on the standard error instead; the exit status is 1 then. Other files in a
    FOLDER are named there too, or counted by kind if there are many.
    """
    from captioner.captioning import Captioner
    from captioner.captioning.overlays import Overlays
    from captioner.captioning.paths import find_images, printable
    from captioner.errors import CaptionerError
    from captioner.progress import Progress

    found = find_images(images)
    files, faults = found.images, found.faults
    failed = bool(faults)
    for line in found.passed_over_lines():
        click.echo(line, err=True)
    for path, reason in faults:
        click.echo(f"Error: {printable(path)}: {reason}", err=True)
    with Captioner.load(model, device) as captioner:
        config = captioner.model.config
        overlays = None
        if attention is not None:
            kind = f"{config['encoder']} + {captioner.model.decoder.config.decoder}, beam {beam}"
            title = f"{kind}: where the decoder looked for each word"
            overlays = Overlays(attention, tuple(config["grid"]), title)
        shown = len(files) >= _MANY and not sys.stdout.isatty()
        with _json_list(as_json) as add, Progress("caption", len(files), "images", shown=shown) as progress:
            for path, reason in faults if as_json else ():
                add({"image": path, "error": reason})
            for result in captioner.stream(files, beam, n_best, attention is not None):
                row = _row(result)
                error = result.error
                if overlays is not None and error is None:
                    try:
                        row["attention"] = str(overlays.write(result))
                    except CaptionerError as fault:  # the captions are there all the same
                        failed = True
                        fault.show()
                if error is not None:
                    failed = True
                    click.echo(f"Error: {printable(result.name)}: {error}", err=True)
                if as_json:
                    add(row)
                elif error is None:
                    click.echo(
                        "\n".join(
                            [
                                printable(result.name),
                                *(
                                    f"{caption.log_probability:9.3f}  {printable(caption.text)}"
                                    for caption in result.captions
                                ),
                            ]
                        )
                    )
                progress.advance(1)
    if failed:
        context.exit(1)


def _row(result: ImageCaptions) -> dict[str, object]:
    if result.error is not None:
        return {"image": result.name, "error": result.error}
    return {
        "image": result.name,
        "captions": [
            {"caption": caption.text, "log_probability": round(caption.log_probability, 6)}
            for caption in result.captions
        ],
    }


@contextmanager
def _json_list(wanted: bool) -> Iterator:
    """Prints a list row by row as it grows; what was printed is a whole list also where the work ends early."""
    rows = 0

    def add(row: dict[str, object]) -> None:
        nonlocal rows
        click.echo(
            ("[" if rows == 0 else ",") + "\n" + json.dumps(row), nl=False
        )  # ASCII: a name that is no text has its escapes too
        rows += 1

    try:
        yield add
    finally:
        if wanted:
            click.echo("\n]" if rows else "[]")
