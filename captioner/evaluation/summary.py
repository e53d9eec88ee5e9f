"""What a person wants to read when a run is over."""

from __future__ import annotations

import csv
import json
import textwrap
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.evaluation.files import BEAM_SWEEP, CAPTIONS, METRICS_FILE, PER_IMAGE, SEARCH_TITLES, SHEET, SIGNATURE
from captioner.evaluation.sampling import sample_images
from captioner.images.captions import CaptionSet
from captioner.metrics.registry import factor, titles
from captioner.model_io import read_config

_SHOWN = 3


def evaluated_dataset(results: Path) -> str:
    """The data set that the last evaluation ran on.

    Raises:
        CaptionerError: ``signature.json`` is missing or damaged.
    """
    path = results / SIGNATURE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["dataset"])
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read ({error.strerror}); run the evaluate stage") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CaptionerError(f"{path}: it is damaged ({error}); run the evaluate stage again") from error


def summary(results: Path, captions: Path, report: Path, models: Path | None = None) -> str:
    """Scores, three captions beside a reference, and where to look next, from the files of a finished evaluation.

    Args:
        results: the folder with ``metrics.json``.
        captions: the data set's ``captions.json``.
        report: the page.
        models: the folder of the model, whose stored settings are shown; None: they are not.

    Raises:
        CaptionerError: a file is missing or damaged.
    """
    try:
        metrics = json.loads((results / METRICS_FILE).read_text(encoding="utf-8"))
        generated = {
            row["image_id"]: row["caption"] for row in json.loads((results / CAPTIONS).read_text(encoding="utf-8"))
        }
        with open(results / BEAM_SWEEP, newline="", encoding="utf-8") as file:
            sweep = list(csv.DictReader(file))
        signature = json.loads((results / SIGNATURE).read_text(encoding="utf-8"))
        lines = [
            *_scores(metrics, signature, sweep),
            "",
            *(() if models is None else (*_settings(models), "")),
            *_captions(generated, CaptionSet.load(captions)),
            "",
            *_next(results, report, signature),
        ]
    except OSError as error:
        raise CaptionerError(f"{error.filename}: cannot be read ({error.strerror}); run the evaluate stage") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CaptionerError(f"{results}: its files are damaged ({error}); run the evaluate stage again") from error
    return "\n".join(lines)


def _scores(metrics: dict[str, Any], signature: dict[str, Any], sweep: list[dict[str, str]]) -> list[str]:
    title = {name: text for name, text in titles().items() if name in metrics}
    width = max(map(len, title.values()))
    lines = [
        f"{signature['dataset']}: {signature['encoder']} + {signature['decoder']}, scores on the "
        f"{signature['split']} split "
        f"({signature['images']:,} images, {SEARCH_TITLES[signature['search']]} {signature['beam']}, chosen on "
        f"validation by {title[signature['select_by']]})",
        "",
        f"  {'':{width}}  {signature['split']:>8}  {'val':>8}",
    ]
    for name in title:
        val = metrics.get(f"val_{name}")
        cells = [
            "" if value is None else f"{value:.{1 if factor(name) == 100 else 3}f}" for value in (metrics[name], val)
        ]
        lines.append(f"  {title[name]:{width}}  {cells[0]:>8}  {cells[1]:>8}")
    lines.append("  (percent; cross entropy in nats a token)")
    if "meteor" not in metrics:
        lines.append(f"  (no METEOR: {signature['meteor'].removeprefix('absent: ')})")
    if len(sweep) > 1:
        metric = signature["select_by"]
        column = f"val_{metric}"
        sizes = ", ".join(f"{row['beam_size']}: {float(row[column]):.1f}" for row in sweep)
        lines += ["", f"  beam size, {title[metric]} on val: {sizes}"]
    return lines


def _settings(models: Path) -> list[str]:
    """Settings stored with the model."""
    config = read_config(models)
    lines = [f"{models} (fingerprint {config['fingerprint'][:12]}), trained on {config['dataset']}:"]
    for name in ("decoder", "training"):
        text = " ".join(f"{key}={value}" for key, value in sorted(config[name].items()))
        if text:
            lines += textwrap.wrap(f"{name}: {text}", 110, initial_indent="  ", subsequent_indent="    ")
    return lines


def _captions(generated: dict[int, str], captions: CaptionSet) -> list[str]:
    lines = [f"{min(_SHOWN, len(generated))} images sampled at random:"]
    for image in sample_images(list(generated), _SHOWN):
        lines += [f"  {captions.file_name(image)}", f"    the model:   {generated[image]}"]
        lines.append(f"    a reference: {captions.captions(image)[0]}")
    return lines


def _next(results: Path, report: Path, signature: dict[str, Any]) -> list[str]:
    other = "lstm" if signature["decoder"] != "lstm" else "gru"
    return [
        "Where to look next:",
        f"  {report}   a page for the browser: images, scores, curves, what was run",
        f"  {results / SHEET}   images, captions, and where the decoder looked for each word",
        f"  {results / PER_IMAGE}   every caption with its scores",
        f"  dvc exp run -S decoder={other}   another decoder: only train and evaluate run again",
        "  make show   all experiments in one table",
    ]
