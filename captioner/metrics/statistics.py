"""What one picture adds to the scores of all: numbers whose sums give every metric of any selection of pictures,
without Java or captions.

BLEU (Papineni et al. 2002) and METEOR (Denkowski and Lavie 2014) of many captions are no means of the captions' scores;
they are functions of sums over captions. ROUGE-L, CIDEr-D and SPICE are means. With one row a picture, the scores of a
bootstrap resample are those of its summed rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from captioner.errors import CaptionerError

STATISTICS = "statistics.csv"  # the file beside an evaluation's other ones

_ORDERS = (1, 2, 3, 4)
BLEU_COLUMNS = (
    *(f"bleu_guess_{n}" for n in _ORDERS),
    *(f"bleu_correct_{n}" for n in _ORDERS),
    "bleu_length",
    "bleu_reference_length",
)
_MODULES = ("exact", "stem", "synonym", "paraphrase")
_KINDS = ("test_content", "reference_content", "test_function", "reference_function")
METEOR_COLUMNS = (  # the order of the line that METEOR 1.5 gives for a caption (MeteorStats.toString)
    "meteor_test_length",
    "meteor_reference_length",
    "meteor_test_function_words",
    "meteor_reference_function_words",
    *(f"meteor_{module}_{kind}" for module in _MODULES for kind in _KINDS),
    "meteor_chunks",
    "meteor_test_matches",
    "meteor_reference_matches",
)
_MEANS = ("rouge_l", "cider_d")
_SPICE = "spice"  # a mean too, where its jars are there
_COLUMNS = {(*BLEU_COLUMNS, *meteor, *_MEANS, *spice) for meteor in (METEOR_COLUMNS, ()) for spice in ((_SPICE,), ())}

# METEOR 1.5's English parameters for the task "rank", the program's default (its Constants.java).
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_MODULE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)


@dataclass(frozen=True)
class Statistics:
    """Rows of pictures.

    Attributes:
        image_ids: (N,) ids as text.
        columns: (K,) names of the columns; METEOR's and SPICE's are absent where it was not computed.
        values: (N, K) float64; all but ``rouge_l``, ``cider_d`` and ``spice`` are whole numbers.
    """

    image_ids: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray

    def scores(self, sums: np.ndarray, images: int) -> dict[str, np.ndarray]:
        """Metrics of summed rows.

        Args:
            sums: (..., K) sums over ``images`` rows, each row counted as often as it was drawn.

        Returns:
            metric -> (...) scores, in the order of ``captioner.metrics.METRICS``.
        """
        column = {name: sums[..., place] for place, name in enumerate(self.columns)}
        found = _bleu(column)
        if METEOR_COLUMNS[0] in column:
            found["meteor"] = _meteor(column)
        return found | {name: column[name] / images for name in (*_MEANS, _SPICE) if name in column}

    def overall(self) -> dict[str, float]:
        """Metrics of all pictures together."""
        return {name: float(value) for name, value in self.scores(self.values.sum(0), len(self.values)).items()}

    def to_csv(self) -> str:
        """One row a picture after a row of names; floats are written so that they read back the same."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image_id", *self.columns])
        for image, row in zip(self.image_ids, self.values.tolist(), strict=True):
            writer.writerow([image, *(int(value) if value.is_integer() else value for value in row)])
        return stream.getvalue()

    @classmethod
    def from_csv(cls, text: str, name: str) -> Statistics:
        """What ``to_csv`` wrote.

        Args:
            name: of the file, for messages.

        Raises:
            CaptionerError: it is no such table.
        """
        try:
            header, *rows = csv.reader(io.StringIO(text))
            columns = tuple(header[1:])
            if header[0] != "image_id" or columns not in _COLUMNS:
                raise ValueError("its columns are others")
            values = np.array([row[1:] for row in rows], dtype=np.float64)
            if values.ndim != 2 or not np.isfinite(values).all():
                raise ValueError("it has no picture, or a number that is not finite")
        except (ValueError, IndexError, csv.Error) as error:
            raise CaptionerError(f"{name}: no table of statistics ({error}); run the evaluate stage again") from error
        return cls(tuple(row[0] for row in rows), columns, values)


def make_statistics(
    image_ids: Sequence[Hashable],
    bleu: Sequence[Mapping[str, object]],
    meteor: Sequence[Sequence[float]] | None,
    means: Mapping[str, Sequence[float]],
) -> Statistics:
    """Rows from what the scorers keep of each caption.

    Args:
        bleu: of each, pycocoevalcap's counts: ``guess`` and ``correct`` of n-grams (n = 1 to 4), ``testlen``,
            ``reflen`` of all references.
        meteor: of each, the 23 numbers of METEOR's line; None where it was not run.
        means: scores of each by ROUGE-L and CIDEr-D.
    """
    # the closest reference; of two as near the shorter
    closest = [min((abs(length - counts["testlen"]), length) for length in counts["reflen"])[1] for counts in bleu]
    parts = [
        np.array(
            [
                [*counts["guess"], *counts["correct"], counts["testlen"], length]
                for counts, length in zip(bleu, closest, strict=True)
            ]
        )
    ]
    if meteor is not None:
        parts.append(np.array(meteor))
    parts.append(np.array([means[name] for name in _MEANS]).T)
    columns = (*BLEU_COLUMNS, *(METEOR_COLUMNS if meteor is not None else ()), *_MEANS)
    values = np.concatenate([part.astype(np.float64) for part in parts], axis=1)
    if meteor is not None:
        _drop_whole_chunks(columns, values)
    return Statistics(tuple(map(str, image_ids)), columns, values)


def _drop_whole_chunks(columns: tuple[str, ...], values: np.ndarray) -> None:
    """A caption that is a reference word for word has no fragmentation: METEOR leaves its one chunk out of sums
    (MeteorStats.addStats)."""
    column = {name: values[:, place] for place, name in enumerate(columns)}
    whole = column["meteor_chunks"] == 1
    for side in ("test", "reference"):
        matches = sum(
            column[f"meteor_{module}_{side}_{kind}"] for module in _MODULES for kind in ("content", "function")
        )
        whole &= matches == column[f"meteor_{side}_length"]
    column["meteor_chunks"][whole] = 0


def _bleu(column: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """BLEU-1 to 4 with the closest reference length, as pycocoevalcap computes it with its tiny additions."""
    tiny, small = 1e-15, 1e-9
    ratio = (column["bleu_length"] + tiny) / (column["bleu_reference_length"] + small)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    product, found = np.ones_like(ratio), {}
    for n in _ORDERS:
        product = product * (column[f"bleu_correct_{n}"] + tiny) / (column[f"bleu_guess_{n}"] + small)
        found[f"bleu_{n}"] = product ** (1 / n) * penalty
    return found


def _meteor(column: Mapping[str, np.ndarray]) -> np.ndarray:
    """METEOR 1.5 of summed statistics (MeteorScorer.computeMetrics): the weighted mean of precision and recall, less
    fragmentation."""
    shares = {}
    for side in ("test", "reference"):
        function, matches = column[f"meteor_{side}_function_words"], 0.0
        for module, weight in zip(_MODULES, _MODULE_WEIGHTS, strict=True):
            content, others = (column[f"meteor_{module}_{side}_{kind}"] for kind in ("content", "function"))
            matches = matches + weight * (_DELTA * content + (1 - _DELTA) * others)
        length = _DELTA * (column[f"meteor_{side}_length"] - function) + (1 - _DELTA) * function
        shares[side] = _ratio(matches, length)
    precision, recall = shares["test"], shares["reference"]
    mean = _ratio(precision * recall, (1 - _ALPHA) * recall + _ALPHA * precision)
    fragmentation = _ratio(
        column["meteor_chunks"], (column["meteor_test_matches"] + column["meteor_reference_matches"]) / 2
    )
    return mean * (1 - _GAMMA * fragmentation**_BETA)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; 0 where below is 0, as for captions without a word."""
    return np.divide(above, below, out=np.zeros_like(below, dtype=np.float64), where=below != 0)
