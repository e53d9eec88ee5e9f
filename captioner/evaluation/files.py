"""What evaluation leaves behind: metrics.json, signature.json, per_image.csv, statistics.json, captions.json, plots/.

Scores are percentages in all of them but statistics.json, whose sums are no scores.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.images.captions import CaptionSet
from captioner.metrics import METRICS, Scores
from captioner.metrics.registry import factor
from captioner.metrics.statistics import STATISTICS
from captioner.search import Hypothesis
from captioner.sidecar import write_atomically
from captioner.vocabulary.vocabulary import Vocabulary

METRICS_FILE, SIGNATURE, EXPERIMENT = "metrics.json", "signature.json", "experiment.json"
PER_IMAGE, CAPTIONS, TIMING = "per_image.csv", "captions.json", "timing.json"
BEAM_SWEEP, SHEET = "plots/beam_sweep.csv", "plots/examples.png"
_FIRST = ("bleu_4", "meteor", "cider_d")  # in metrics.json, and so in `dvc exp show`
SEARCH_TITLES = {"beam": "beam", "diverse": "diverse beam", "sample": "samples"}  # before a beam size


@dataclass(frozen=True)
class Evaluation:
    """All that was computed.

    Attributes:
        split: of the headline.
        beam: the headline's beam size.
        scores: split -> beam size -> scores; the splits are ``val`` and the headline's.
        teacher_forced: split -> cross entropy and token accuracy.
        variety: beam size -> the metrics of ``captioner.metrics.diversity``, of the headline split.
        hypotheses: image id -> caption, of the headline.
        vocabulary: of the model.
        captions: references and file names.
        facts: further facts for the signature.
    """

    split: str
    beam: int
    scores: Mapping[str, Mapping[int, Scores]]
    teacher_forced: Mapping[str, Mapping[str, float]]
    variety: Mapping[int, Mapping[str, float]]
    hypotheses: Mapping[int, Hypothesis]
    vocabulary: Vocabulary
    captions: CaptionSet
    facts: Mapping[str, Any]


def write_evaluation(
    results: Path, evaluation: Evaluation, sheet: bytes, report: Path, page: str, timing: Mapping[str, Any]
) -> None:
    """Make the text of every file first, then write each atomically, ``metrics.json`` last.

    Args:
        sheet: the PNG of example captions.
        report, page: the report's file and its text.
        timing: seconds; in a file of its own, for times are never the same twice.

    Raises:
        CaptionerError: ``results`` or ``report`` cannot be written.
    """
    files: dict[str, str | bytes] = {
        BEAM_SWEEP: beam_sweep_csv(evaluation),
        SHEET: sheet,
        PER_IMAGE: per_image_csv(evaluation),
        STATISTICS: evaluation.scores[evaluation.split][evaluation.beam].statistics.to_json(),
        CAPTIONS: captions_json(evaluation),
        TIMING: json.dumps(timing) + "\n",
        SIGNATURE: json.dumps(signature(evaluation), indent=1) + "\n",
        EXPERIMENT: json.dumps(experiment(evaluation), indent=1) + "\n",
        METRICS_FILE: json.dumps(metrics(evaluation), indent=1) + "\n",
    }
    try:
        write_atomically(report, page)
        for name, content in files.items():
            write_atomically(results / name, content)
    except OSError as error:
        remedy = "free the disk or mend its permissions and run again"
        raise CaptionerError(f"{results}: cannot be written ({error.strerror}); {remedy}") from error


def metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The headline's scores by name, then the validation's with ``val_`` before the name.

    Scores are percentages, cross entropies nats a token, ``caption_length`` and ``words_used`` words.
    """
    headline, val = (evaluation.scores[split][evaluation.beam] for split in (evaluation.split, "val"))
    every = {
        **headline.overall,
        **evaluation.teacher_forced[evaluation.split],
        **evaluation.variety[evaluation.beam],
    }
    names = [*(name for name in _FIRST if name in every), *(name for name in every if name not in _FIRST)]
    found: dict[str, Any] = {name: display(name, every[name]) for name in names}
    found["beam_size"] = evaluation.beam
    validation = {**val.overall, **evaluation.teacher_forced["val"]}
    return found | {f"val_{name}": display(name, value) for name, value in validation.items()}


def signature(evaluation: Evaluation) -> dict[str, Any]:
    """What the scores depend on: see ``Scores.signature``; split, beam size and ``Evaluation.facts``."""
    headline = evaluation.scores[evaluation.split][evaluation.beam]
    return {**headline.signature, "split": evaluation.split, "beam": evaluation.beam, **evaluation.facts}


def experiment(evaluation: Evaluation) -> dict[str, Any]:
    """What was trained: the first columns of `dvc exp show`.

    DVC shows metrics before parameters, and two columns of one name with their files' names before it. Hence a file of
    its own with names that no parameter has.
    """
    names = ("encoder", "decoder", "attention", "seed")
    return {name.capitalize(): evaluation.facts[name] for name in names}


def display(name: str, value: float) -> float:
    """A metric's value as files have it: a percentage, nats or a count, rounded."""
    return value if isinstance(value, int) else round(float(value) * factor(name), 4 if factor(name) == 100 else 6)


def beam_sweep_csv(evaluation: Evaluation) -> str:
    """One row a beam size; a column for each metric of the headline split, then of validation (``val_``) where it was
    computed, then for what the captions of the headline split are like."""
    headline, val = evaluation.scores[evaluation.split], evaluation.scores["val"]
    names = [metric.name for metric in METRICS.values() if not metric.slow]
    columns = [(headline, name, name) for name in names] + [(val, name, f"val_{name}") for name in names]
    columns = [column for column in columns if column[1] in column[0][evaluation.beam].overall]
    rows: list[list[Any]] = [["beam_size", *(title for _, _, title in columns), *evaluation.variety[evaluation.beam]]]
    for size in sorted(headline):
        rows.append(
            [
                size,
                *(display(name, scores[size].overall[name]) for scores, name, _ in columns),
                *(display(name, value) for name, value in evaluation.variety[size].items()),
            ]
        )
    return _csv(rows)


def per_image_csv(evaluation: Evaluation) -> str:
    """One row an image of the headline split, in the order of the captions file."""
    scores = evaluation.scores[evaluation.split][evaluation.beam]
    names = list(scores.overall)
    rows: list[list[Any]] = [["image_id", "file_name", "caption", *names, "log_probability"]]
    for image, hypothesis in evaluation.hypotheses.items():
        values = [display(name, scores.per_image[image][name]) for name in names]
        caption = evaluation.vocabulary.decode(hypothesis.tokens)
        probability = round(float(hypothesis.log_probability), 6)
        rows.append([image, evaluation.captions.file_name(image), caption, *values, probability])
    return _csv(rows)


def captions_json(evaluation: Evaluation) -> str:
    """COCO's results format, one image a line."""
    decode = evaluation.vocabulary.decode
    rows = [
        {"image_id": image, "caption": decode(hypothesis.tokens)} for image, hypothesis in evaluation.hypotheses.items()
    ]
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def _csv(rows: list[list[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
