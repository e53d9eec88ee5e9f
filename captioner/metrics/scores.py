"""Scores of captions by every metric of the registry, comparable with published numbers (pycocoevalcap 1.2)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from captioner.errors import CaptionerError
from captioner.fingerprint import fingerprint
from captioner.metrics import ptb
from captioner.metrics.java import Java, find_java
from captioner.metrics.metric import Corpus, MetricValues, Program
from captioner.metrics.registry import METRICS
from captioner.metrics.statistics import Statistics, make_statistics
from captioner.vocabulary.tokenizer import scored_tokens
from captioner.vocabulary.tokenizers import ENGLISH, Tokenizer

OWN_TOKENIZER = "captioner (Penn Treebank style; no Java runs here)"


@dataclass(frozen=True)
class Scores:
    """What ``score`` returns.

    Attributes:
        overall: metric -> score of all candidates together, as fractions (0.18, not 18); CIDEr-D may exceed 1.
        per_image: id -> metric -> score of that candidate. Corpus BLEU is not the mean of these; most others are.
        signature: what the numbers depend on: tool, version, tokenizer, meteor, java, images, references and the
            fingerprint of both.
        statistics: per image, in the order of ``per_image``; they give the overall scores of any selection of images.
    """

    overall: dict[str, float]
    per_image: dict[Hashable, dict[str, float]]
    signature: dict[str, Any]
    statistics: Statistics = field(compare=False)


@dataclass(frozen=True)
class References:
    """References tokenized once, to score many caption sets against them; made by ``Scorer.references``.

    Attributes:
        texts: image id -> captions as written.
        tokens: image id -> the same, tokenized.
    """

    texts: Mapping[Hashable, Sequence[str]]
    tokens: Mapping[Hashable, list[str]]


class Scorer:
    """Scores any number of caption sets. METEOR, which takes seconds to load, is started once for all of them.

    Use as a context manager. METEOR loads in parallel to whatever the caller does.

    Args:
        meteor: False leaves out METEOR, and any other metric that starts a program.
        tokenizer: of captions and references. Metrics for English alone are left out with those of other languages.

    Raises:
        CaptionerError: pycocoevalcap is not installed properly.
    """

    def __init__(self, *, meteor: bool = True, tokenizer: Tokenizer = ENGLISH) -> None:
        self._tokenizer = tokenizer
        self._java = find_java() if tokenizer.english else None
        self._wanted = meteor
        self._programs: dict[str, Program] = {}
        if self._java and meteor:
            for metric in METRICS.values():
                if metric.program and (tokenizer.english or not metric.english_only):
                    self._programs[metric.name] = metric.program(self._java)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the programs."""
        for program in self._programs.values():
            program.close()

    def references(self, references: Mapping[Hashable, Sequence[str]]) -> References:
        """Tokenize references that ``score`` will get more than once."""
        tokens = iter(_tokenize([text for texts in references.values() for text in texts], self._java, self._tokenizer))
        return References(references, {key: [next(tokens) for _ in texts] for key, texts in references.items()})

    def score(
        self, references: Mapping[Hashable, Sequence[str]] | References, candidates: Mapping[Hashable, str]
    ) -> Scores:
        """Score one caption for each image against that image's references; see the function ``score``."""
        texts = references.texts if isinstance(references, References) else references
        _check(texts, candidates)
        corpus = _corpus(references, candidates, self._java, self._tokenizer, self._programs)
        if not any(text for group in corpus.references for text in group):
            raise CaptionerError("references: none of them has a word; give captions in words")
        values = self._compute(corpus)
        return Scores(
            overall={name: float(found.corpus) for name, found in values.items()},
            per_image=_per_image(candidates, values),
            signature=self._signature(texts),
            statistics=make_statistics(list(candidates), values),
        )

    def _compute(self, corpus: Corpus) -> dict[str, MetricValues]:
        """Metric name -> values, in the order of the registry. Programs run in parallel to the metrics in Python."""
        metrics = [metric for metric in METRICS.values() if not metric.slow]
        in_python = [metric for metric in metrics if metric.program is None]
        in_programs = [metric for metric in metrics if metric.name in self._programs]
        with ThreadPoolExecutor(max(1, len(in_programs))) as pool:
            running = {metric.name: pool.submit(metric.compute, corpus) for metric in in_programs}
            try:
                values = {metric.name: metric.compute(corpus) for metric in in_python}
                values |= {name: task.result() for name, task in running.items()}
            except BaseException:  # the pool would wait for the programs
                self.close()
                raise
        return {metric.name: values[metric.name] for metric in metrics if metric.name in values}

    def _signature(self, references: Mapping[Hashable, Sequence[str]]) -> dict[str, Any]:
        if not self._wanted:
            absent = "absent: not asked for"
        else:
            absent = "absent: no Java runs here" if self._tokenizer.english else "absent: it knows English only"
        return {
            "tool": "pycocoevalcap",
            "version": importlib.metadata.version("pycocoevalcap"),
            "tokenizer": _tokenizer_name(self._tokenizer, self._java),
            **{
                metric.name: metric.version if metric.name in self._programs else absent
                for metric in METRICS.values()
                if metric.program
            },
            "java": self._java.version if self._java else "none",
            "images": len(references),
            "references": sum(map(len, references.values())),
            "fingerprint": fingerprint({str(key): sorted(texts) for key, texts in references.items()}),
        }


def score(
    references: Mapping[Hashable, Sequence[str]],
    candidates: Mapping[Hashable, str],
    *,
    meteor: bool = True,
    tokenizer: Tokenizer = ENGLISH,
) -> Scores:
    """Score one caption for each image against that image's references.

    English captions are tokenized by Stanford's PTBTokenizer where a Java runs, else by our own tokenizer; those of
    other languages by their own. The signature says which. METEOR is absent without a Java, and for other languages.
    CIDEr-D takes its document frequencies from ``references``: scores of a
    subset are not comparable with those of the whole. Slow metrics (SPICE) are added by ``with_slow_metrics``.

    Args:
        references: image id -> its captions, as written.
        candidates: image id -> the caption to score, as written; may be empty. The same ids as ``references``.
        meteor: False leaves METEOR out (it takes seconds to start; ``Scorer`` starts it once for many calls).
        tokenizer: of both; one of ``captioner.vocabulary.tokenizers``.

    Raises:
        CaptionerError: no image, an image on one side only, an image without references, references without a word, or
            a Java program failed.
    """
    _check(references, candidates)
    with Scorer(meteor=meteor, tokenizer=tokenizer) as scorer:
        return scorer.score(references, candidates)


def with_slow_metrics(
    scores: Scores,
    references: Mapping[Hashable, Sequence[str]],
    candidates: Mapping[Hashable, str],
    *,
    tokenizer: Tokenizer = ENGLISH,
) -> Scores:
    """The same scores, with the slow metrics that are available on this machine.

    Args:
        scores: of these captions.
        references: image id -> captions as written.
        candidates: image id -> the caption to score, in the order of ``scores.per_image``.
        tokenizer: that ``scores`` were computed with.

    Raises:
        CaptionerError: a program failed or took too long.
    """
    metrics = [
        metric
        for metric in METRICS.values()
        if metric.slow and (tokenizer.english or not metric.english_only) and metric.available()
    ]
    if not metrics:
        return scores
    corpus = _corpus(references, candidates, find_java() if tokenizer.english else None, tokenizer)
    values = {metric.name: metric.compute(corpus) for metric in metrics}
    added, table = _per_image(candidates, values), make_statistics(list(candidates), values)
    return Scores(
        overall=_in_order(scores.overall | {name: float(found.corpus) for name, found in values.items()}),
        per_image={key: _in_order(scores.per_image[key] | added[key]) for key in candidates},
        signature=scores.signature | {metric.name: metric.version for metric in metrics if metric.version},
        statistics=scores.statistics.join(table),
    )


def _in_order(scores: dict[str, float]) -> dict[str, float]:
    """In the order of the registry."""
    return {name: scores[name] for name in METRICS if name in scores}


def _corpus(
    references: Mapping[Hashable, Sequence[str]] | References,
    candidates: Mapping[Hashable, str],
    java: Java | None,
    tokenizer: Tokenizer,
    programs: Mapping[str, Program] | None = None,
) -> Corpus:
    """The captions and references, tokenized together; references that are tokenized already are kept."""
    if isinstance(references, References):
        tokens = _tokenize(list(candidates.values()), java, tokenizer)
        return Corpus(tokens, [references.tokens[key] for key in candidates], programs or {})
    texts = [text for key in candidates for text in (candidates[key], *references[key])]
    found = iter(_tokenize(texts, java, tokenizer))
    pairs = [(next(found), [next(found) for _ in references[key]]) for key in candidates]
    return Corpus([candidate for candidate, _ in pairs], [group for _, group in pairs], programs or {})


def _per_image(
    candidates: Mapping[Hashable, str], values: Mapping[str, MetricValues]
) -> dict[Hashable, dict[str, float]]:
    return {
        key: {name: float(found.per_image[row]) for name, found in values.items()} for row, key in enumerate(candidates)
    }


def _check(references: Mapping[Hashable, Sequence[str]], candidates: Mapping[Hashable, str]) -> None:
    if not candidates and not references:
        raise CaptionerError("captions to score: there are none; give at least one")
    for have, lack, what in ((candidates, references, "references"), (references, candidates, "a caption to score")):
        missing = [key for key in have if key not in lack]
        if missing:
            raise CaptionerError(f"images without {what}: {first_few(missing)}; give the same images on both sides")
    without = [key for key, texts in references.items() if not texts]
    if without:
        raise CaptionerError(f"images without references: {first_few(without)}; give at least one caption for each")
    not_text = [
        key
        for key, texts in references.items()
        if isinstance(texts, str) or not all(isinstance(text, str) for text in (*texts, candidates[key]))
    ]
    if not_text:
        raise CaptionerError(
            f"images whose captions are no text: {first_few(not_text)}; "
            "give a list of references and one caption for each"
        )


def first_few(keys: Sequence[Hashable]) -> str:
    """The first few of many keys, for a message."""
    return ", ".join(map(repr, keys[:5])) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _tokenize(captions: list[str], java: Java | None, tokenizer: Tokenizer) -> list[str]:
    """Tokens joined with spaces, as metrics take them, whatever the language."""
    if not tokenizer.english:
        return [" ".join(tokenizer.tokenize(caption)) for caption in captions]
    if java:
        return ptb.ptb_tokenize(captions, java)
    return [" ".join(scored_tokens(caption)) for caption in captions]


def _tokenizer_name(tokenizer: Tokenizer, java: Java | None) -> str:
    if not tokenizer.english:
        return f"{tokenizer.name} (captioner; UAX 29 by regex {importlib.metadata.version('regex')})"
    return ptb.NAME if java else OWN_TOKENIZER
