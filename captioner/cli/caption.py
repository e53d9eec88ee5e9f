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
    from captioner.captioning.base import BaseCaptioner
    from captioner.drawing import Example

_ON_A_SHEET = 50
_MANY = 100  # images from which on progress is shown, where it does not stand between captions


@click.command("caption")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER...")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help=f"Folder of a trained model, `{paths.MODELS}` for the pipeline's; without it the model of photos that comes "
    "with the program. With --runtime onnx, the folder of an export.",
)
@click.option(
    "--runtime",
    type=click.Choice(["torch", "onnx"]),
    default="torch",
    show_default=True,
    help="onnx: a folder that `captioner export --onnx` made, without torch, on the CPU.",
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
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=f"One PNG of all images with captions and attention, of the first {_ON_A_SHEET} where there are more.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N; auto: a GPU where there is one.")
@click.pass_context
def command(
    context: click.Context,
    images: tuple[str, ...],
    model: Path | None,
    runtime: str,
    beam: int,
    n_best: int,
    as_json: bool,
    attention: Path | None,
    sheet: Path | None,
    device: str,
) -> None:
    """Caption images.

    Every IMAGE, and every image in a FOLDER and below it, gets its captions with their log-probabilities (natural
    logarithms), in the order of log-probability per word: a sum over words alone would put the shortest first. An
    image that cannot be read gets a line on the standard error instead; the exit status is 1 then. Other files in a
    FOLDER are named there too, or counted by kind if there are many.
    """
    from captioner.captioning.overlays import Overlays, example, write_sheet
    from captioner.captioning.paths import find_images, printable
    from captioner.errors import CaptionerError
    from captioner.pretrained import FLICKR8K
    from captioner.progress import Progress

    found = find_images(images)
    files, faults = found.images, found.faults
    failed = bool(faults)
    for line in found.passed_over_lines():
        click.echo(line, err=True)
    for path, reason in faults:
        click.echo(f"Error: {printable(path)}: {reason}", err=True)
    if runtime == "onnx" and model is None:
        raise CaptionerError("--runtime onnx: name an export's folder with --model; captioner export --onnx makes one")
    with _load(model or FLICKR8K, runtime, device) as captioner:
        if captioner.dataset == "scenes":
            click.echo(f"Note: {model} was trained on drawn scenes; it knows drawings only, no photos.", err=True)
        overlays = None
        title = f"{captioner.title}, beam {beam}: where the decoder looked for each word"
        examples: list[Example] = []
        if attention is not None:
            overlays = Overlays(attention, captioner.grid, title)
        shown = len(files) >= _MANY and not sys.stdout.isatty()
        with _json_list(as_json) as add, Progress("caption", len(files), "images", shown=shown) as progress:
            for path, reason in faults if as_json else ():
                add({"image": path, "error": reason})
            for result in captioner.stream(files, beam, n_best, attention is not None or sheet is not None):
                row = _row(result)
                error = result.error
                if overlays is not None and error is None:
                    try:
                        row["attention"] = str(overlays.write(result))
                    except CaptionerError as fault:  # the captions are there all the same
                        failed = True
                        fault.show()
                if sheet is not None and error is None and len(examples) < _ON_A_SHEET:
                    examples.append(example(result, captioner.grid))
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
        if sheet is not None:
            write_sheet(sheet, examples, title)
    if failed:
        context.exit(1)


def _load(model: Path, runtime: str, device: str) -> BaseCaptioner:
    if runtime == "torch":
        from captioner.captioning import Captioner

        return Captioner.load(model, device)
    from captioner.captioning.onnx.captioner import OnnxCaptioner
    from captioner.errors import CaptionerError

    if device not in ("auto", "cpu"):
        raise CaptionerError(f"--device={device}: --runtime onnx computes on the CPU; leave --device out")
    return OnnxCaptioner.load(model)


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
