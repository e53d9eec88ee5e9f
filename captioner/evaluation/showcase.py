"""The README's image: a few images of a finished run with their captions, and where the decoder looked for each
word.

    python -m captioner.evaluation.showcase --data data/scenes --out docs/captions.png

The images are sampled at random from the headline split, before any caption is looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from captioner.device import prepare_device
from captioner.drawing import draw_sheet, to_bytes
from captioner.errors import CaptionerError
from captioner.evaluation.decoding import SplitDecoder
from captioner.evaluation.evaluate import examples
from captioner.evaluation.files import CAPTIONS, SIGNATURE
from captioner.evaluation.inputs import load_inputs
from captioner.evaluation.sampling import sample_images
from captioner.parameters import Parameters, load_parameters
from captioner.sidecar import write_atomically


def showcase(
    parameters: Parameters,
    models: Path,
    features: Path,
    captions: Path,
    images: Path,
    results: Path,
    out: Path,
    count: int = 4,
    seed: int = 1,
) -> list[int]:
    """Draw ``count`` images of a finished run into the PNG ``out``.

    Args:
        results: the folder that ``evaluate`` wrote; split, beam size and captions are taken from it.
        seed: of the random choice of images; nothing else decides it.

    Returns:
        The ids of the images, in the order in which they are shown.

    Raises:
        CaptionerError: inputs that are damaged or do not belong together, or the model now says something else than the
            results hold.
    """
    signature, written = _read(results / SIGNATURE), _read(results / CAPTIONS)
    try:
        split, beam = signature["split"], int(signature["beam"])
        stated = {row["image_id"]: row["caption"] for row in written}
    except (KeyError, TypeError, ValueError) as error:
        raise CaptionerError(f"{results}: its files are damaged ({error}); run the evaluate stage again") from error
    device = prepare_device(parameters.runtime.device, parameters.runtime.threads)
    inputs = load_inputs(models, features, captions, images, (split,), parameters.evaluate.ensemble)
    ids = inputs.captions.image_ids(split)
    chosen = sample_images(ids, count, seed)
    with inputs.store.reader("auto", "cpu") as reader:
        searcher = SplitDecoder(inputs, reader, parameters.evaluate, device)
        found = searcher.with_attention(ids, chosen, beam)
    for image in chosen:
        caption = inputs.model.vocabulary.decode(found[image].tokens)
        if stated.get(image) != caption:
            raise CaptionerError(
                f"{results / CAPTIONS}: image {image} is {stated.get(image)!r} there, but the model says {caption!r} "
                "now; "
                "run the evaluate stage again"
            )
    which = f"{len(chosen)} of {len(ids):,} images of the {split} split of {parameters.dataset}, sampled at random"
    title = f"{which}, and where the decoder looked for each word"
    write_atomically(out, to_bytes(draw_sheet(examples(inputs, {image: found[image] for image in chosen}), title)))
    return chosen


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read ({error.strerror}); run the evaluate stage") from error
    except ValueError as error:
        raise CaptionerError(f"{path}: no valid JSON ({error}); run the evaluate stage again") from error


@click.command(help=__doc__)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="folder of the data set: images.h5, captions.json, features/",
)
@click.option("--models", type=click.Path(path_type=Path), default=Path("models"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/evaluate"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/captions.png"), show_default=True)
@click.option("--count", default=4, show_default=True, help="images")
@click.option("--seed", default=1, show_default=True, help="of the random choice of images")
@click.option(
    "--params",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="the run's parameters",
)
def main(data: Path, models: Path, results: Path, out: Path, count: int, seed: int, params: Path) -> None:
    parameters = load_parameters(params)
    features = data / "features" / f"{parameters.encoder}.h5"
    chosen = showcase(
        parameters, models, features, data / "captions.json", data / "images.h5", results, out, count, seed
    )
    click.echo(f"{out}: images {', '.join(map(str, chosen))}, sampled at random (seed {seed})")


if __name__ == "__main__":
    main()
