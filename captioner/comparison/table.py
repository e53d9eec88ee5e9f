"""A comparison as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from captioner.comparison.bootstrap import LEVEL
from captioner.comparison.comparison import SHOWN, Comparison, Difference, Score, Setting
from captioner.metrics import METRICS

LeftOut = Sequence[tuple[str, str]]
_TEST = "two-sided paired bootstrap over images"
_HEADER = (
    "experiment",
    "versus",
    *SHOWN,
    "seeds",
    "other parameters",
    "metric",
    "score",
    "low",
    "high",
    "spread over seeds",
    "p",
)


def as_text(comparison: Comparison, left_out: LeftOut) -> str:
    """For a terminal; a cell of a score has its interval below it, and below that the spread where there are several
    seeds."""
    tables = [
        _columns(_setting_rows(comparison)),
        _columns(_score_rows(comparison, lambda score: "\n".join(_score_parts(score)))),
    ]
    if comparison.pairs:
        tables.append(_columns(_pair_rows(comparison, lambda found: f"{found.value:+.2f}\np {found.p:.3f}")))
    return "\n\n".join([*tables, "\n".join([*_notes(comparison), *_left_out(left_out)])]) + "\n"


def as_markdown(comparison: Comparison, left_out: LeftOut) -> str:
    """The same as tables of GitHub's Markdown."""
    settings = [[_markdown(cell) for cell in row] for row in _setting_rows(comparison)]
    tables = [_grid(settings), _grid(_score_rows(comparison, lambda score: " ".join(_score_parts(score))))]
    if comparison.pairs:
        tables.append(_grid(_pair_rows(comparison, lambda found: f"{found.value:+.2f} (p {found.p:.3f})")))
    return "\n\n".join([*tables, *map(_markdown, [*_notes(comparison), *_left_out(left_out)])]) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One row for each metric of a setting, then for each metric of a pair: ``score`` and interval, in percent, are the
    difference experiment - versus there.

    A spreadsheet takes a cell that begins with =, +, - or @ for a formula, and names come from anywhere: such texts get
    an apostrophe in front. Numbers stay numbers.
    """
    rows: list[list[Any]] = [list(_HEADER)]
    for setting in comparison.settings:
        for metric, score in setting.scores.items():
            about = [
                _names(setting),
                "",
                *(_plain(setting.parameters[name]) for name in SHOWN),
                _seeds(setting),
                _others(setting),
            ]
            spread = "" if score.spread is None else _round(score.spread)
            rows.append([*map(_cell, about), metric, *map(_round, (score.value, score.low, score.high)), spread, ""])
    for pair in comparison.pairs:
        names = [_cell(_names(comparison.settings[index])) for index in (pair.second, pair.first)]
        for metric, found in pair.differences.items():
            rows.append(
                [
                    *names,
                    *[""] * (len(SHOWN) + 2),
                    metric,
                    *map(_round, (found.value, found.low, found.high)),
                    "",
                    _round(found.p),
                ]
            )
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def as_json(comparison: Comparison, left_out: LeftOut) -> str:
    """One object: ``settings`` with their runs and scores in percent, ``pairs`` (places in ``settings``), what was left
    out and why."""
    content = {
        "resamples": comparison.resamples,
        "level": LEVEL,
        "test": _TEST,
        "signature": {
            key: comparison.signature.get(key)
            for key in ("tool", "version", "tokenizer", "meteor", "split", "images", "references", "fingerprint")
        },
        "settings": [
            {
                "experiments": [
                    {"names": names, "seed": seed} for names, seed in zip(setting.names, setting.seeds, strict=True)
                ],
                **setting.parameters,
                "other_parameters": setting.others,
                "scores": {metric: _rounded(score) for metric, score in setting.scores.items()},
            }
            for setting in comparison.settings
        ],
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "differences": {metric: _rounded(found) for metric, found in pair.differences.items()},
            }
            for pair in comparison.pairs
        ],
        "left_out": [{"name": name, "reason": reason} for name, reason in left_out],
    }
    return json.dumps(content, indent=1, default=str) + "\n"


def _setting_rows(comparison: Comparison) -> list[list[str]]:
    rows = [["", "experiment", *SHOWN, "seeds", "other parameters"]]
    for number, setting in enumerate(comparison.settings, 1):
        parameters = [_plain(setting.parameters[name]) for name in SHOWN]
        rows.append([str(number), _names(setting), *parameters, _seeds(setting), _others(setting)])
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    return rows


def _score_rows(comparison: Comparison, cell: Callable[[Score], str]) -> list[list[str]]:
    rows = [["", *(METRICS[metric].title for metric in comparison.metrics)]]
    for number, setting in enumerate(comparison.settings, 1):
        rows.append([str(number), *(cell(setting.scores[metric]) for metric in comparison.metrics)])
    return rows


def _pair_rows(comparison: Comparison, cell: Callable[[Difference], str]) -> list[list[str]]:
    rows = [["", *(METRICS[metric].title for metric in comparison.metrics)]]
    for pair in comparison.pairs:
        rows.append(
            [
                f"{pair.second + 1} - {pair.first + 1}",
                *(cell(pair.differences[metric]) for metric in comparison.metrics),
            ]
        )
    return rows


def _score_parts(score: Score) -> list[str]:
    parts = [f"{score.value:.1f}", f"{score.low:.1f}-{score.high:.1f}"]
    return parts if score.spread is None else [*parts, f"±{score.spread:.1f}"]


def _notes(comparison: Comparison) -> list[str]:
    signature = comparison.signature
    several = any(len(setting.seeds) > 1 for setting in comparison.settings)
    return [
        f"scores in percent; {signature.get('images'):,} images of the split {signature.get('split')}; intervals of "
        "95 % and p-values "
        f"({_TEST}): {comparison.resamples:,} resamples"
        + ("; ± is the standard deviation over seeds" if several else "")
    ]


def _left_out(left_out: LeftOut) -> list[str]:
    return [f"not compared: {name}: {reason}" for name, reason in left_out]


def _names(setting: Setting) -> str:
    return ", ".join("=".join(names) for names in setting.names)


def _seeds(setting: Setting) -> str:
    return ", ".join(map(_plain, setting.seeds))


def _others(setting: Setting) -> str:
    return " ".join(f"{name}={_plain(value)}" for name, value in setting.others.items())


def _plain(value: Any) -> str:
    """A parameter's value on one line."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value, default=str)


def _columns(rows: list[list[str]]) -> str:
    """Columns under one another; a cell may have several lines."""
    widths = [max(len(line) for row in rows for line in row[column].split("\n")) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.split("\n") for cell in row]
        for part in range(max(map(len, cells))):
            line = "  ".join(
                f"{cell[part] if part < len(cell) else '':{width}}" for cell, width in zip(cells, widths, strict=True)
            )
            lines.append(line.rstrip())
    return "\n".join(lines)


def _grid(rows: list[list[str]]) -> str:
    header, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *others])


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is: signs that mean something get a backslash; an underscore within a word means
    nothing."""
    return re.sub(r"[\\`*{}\[\]<>|&~#$!]|(?<![^\W_])_|_(?![^\W_])", lambda sign: "\\" + sign[0], text)


def _cell(text: str) -> str:
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _round(value: float) -> float:
    return round(value, 6)


def _rounded(found: Score | Difference) -> dict[str, float | None]:
    return {name: None if value is None else _round(value) for name, value in vars(found).items()}
