"""BLEU-1..4, METEOR, ROUGE-L and CIDEr-D of captions, comparable with published numbers (pycocoevalcap 1.2)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from captioner.errors import CaptionerError
from captioner.fingerprint import fingerprint
from captioner.metrics import meteor as meteor_program
from captioner.metrics import ptb
from captioner.metrics.java import Java, find_java
from captioner.metrics.rouge import rouge_l
from captioner.metrics.statistics import Statistics, make_statistics
from captioner.vocabulary.tokenizer import scored_tokens

TITLES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "spice": "SPICE",
}
METRICS = tuple(name for name in TITLES if name != "spice")  # what every scoring has, METEOR where a Java runs
OWN_TOKENIZER = "captioner (Penn Treebank style; no Java runs here)"


@dataclass(frozen=True)
class Scores:
    """What ``score`` gives.

    Attributes:
        overall: metric -> score of all candidates together, as fractions (0.18, not 18); CIDEr-D may exceed 1.
        per_image: id -> metric -> score of that candidate. BLEU of all candidates is no mean of these; the others
            nearly or exactly.
        signature: tool, version, tokenizer, meteor, java, images, references and the fingerprint of both: what the
            numbers depend on.
        statistics: of each candidate, in the order of ``per_image``: what the overall scores are made of.
    """

    overall: dict[str, float]
    per_image: dict[Hashable, dict[str, float]]
    signature: dict[str, Any]
    statistics: Statistics = field(compare=False)


@dataclass(frozen=True)
class References:
    """References tokenized once, for captions that are scored against them again and again; ``Scorer.references`` makes
    them.

    Attributes:
        texts: image id -> captions as written.
        tokens: image id -> the same, tokenized.
    """

    texts: Mapping[Hashable, Sequence[str]]
    tokens: Mapping[Hashable, list[str]]


class Scorer:
    """Scores any number of caption sets; METEOR, which takes seconds to read its tables, is started once for all of
    them.

    Use as a context manager. METEOR starts at once and reads its tables beside whatever the caller does.

    Args:
        meteor: False leaves METEOR out.

    Raises:
        CaptionerError: pycocoevalcap is not installed as it should be.
    """

    def __init__(self, *, meteor: bool = True) -> None:
        self._java = find_java()
        self._wanted = meteor
        self._meteor = meteor_program.Meteor(self._java) if self._java and meteor else None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._meteor:
            self._meteor.close()

    def references(self, references: Mapping[Hashable, Sequence[str]]) -> References:
        """Tokenize references that ``score`` will get more than once."""
        tokens = iter(_tokenize([text for texts in references.values() for text in texts], self._java))
        return References(references, {key: [next(tokens) for _ in texts] for key, texts in references.items()})

    def score(
        self, references: Mapping[Hashable, Sequence[str]] | References, candidates: Mapping[Hashable, str]
    ) -> Scores:
        """Score one caption for each image against that image's references; see the function ``score``."""
        known = references if isinstance(references, References) else None
        texts = known.texts if known else references
        _check(texts, candidates)
        tokens = iter(
            _tokenize(
                [text for key in candidates for text in (candidates[key], *(() if known else texts[key]))], self._java
            )
        )
        ours, theirs = [], []
        for key in candidates:
            ours.append(next(tokens))
            theirs.append(known.tokens[key] if known else [next(tokens) for _ in texts[key]])
        if not any(text for group in theirs for text in group):
            raise CaptionerError("references: none of them has a word; give captions in words")
        meteor_statistics = None
        if self._meteor is None:
            metrics, counts = _python_metrics(theirs, ours)
        else:  # METEOR works in its own process: beside the others, not after them
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(self._meteor.score, theirs, ours)
                try:
                    metrics, counts = _python_metrics(theirs, ours)
                    *metrics["meteor"], meteor_statistics = running.result()
                except BaseException:  # the pool would wait for it
                    self._meteor.close()
                    raise
        names = [name for name in METRICS if name in metrics]
        return Scores(
            overall={name: float(metrics[name][0]) for name in names},
            per_image={
                key: {name: float(metrics[name][1][row]) for name in names} for row, key in enumerate(candidates)
            },
            signature=self._signature(texts),
            statistics=make_statistics(
                list(candidates), counts, meteor_statistics, {name: each for name, (_, each) in metrics.items()}
            ),
        )

    def _signature(self, references: Mapping[Hashable, Sequence[str]]) -> dict[str, Any]:
        absent = "absent: not asked for" if not self._wanted else "absent: no Java runs here"
        return {
            "tool": "pycocoevalcap",
            "version": importlib.metadata.version("pycocoevalcap"),
            "tokenizer": ptb.NAME if self._java else OWN_TOKENIZER,
            "meteor": meteor_program.NAME if self._meteor else absent,
            "java": self._java.version if self._java else "none",
            "images": len(references),
            "references": sum(map(len, references.values())),
            "fingerprint": fingerprint({str(key): sorted(texts) for key, texts in references.items()}),
        }


def score(
    references: Mapping[Hashable, Sequence[str]], candidates: Mapping[Hashable, str], *, meteor: bool = True
) -> Scores:
    """Score one caption for each image against that image's references.

    Tokens are those of Stanford's PTBTokenizer where a Java runs, else of our own; the signature says which. METEOR is
    absent where no Java runs, never imitated. CIDEr-D takes its document frequencies from ``references``, so that a
    subset is not comparable.

    Args:
        references: image id -> its captions, as written.
        candidates: image id -> the caption to score, as written; may be empty. The same ids as ``references``.
        meteor: False leaves METEOR out (it takes some seconds to start; ``Scorer`` starts it once for many calls).

    Raises:
        CaptionerError: no image, an image on one side only, an image without references, references without a word, or
            a Java program failed.
    """
    _check(references, candidates)
    with Scorer(meteor=meteor) as scorer:
        return scorer.score(references, candidates)


def _check(references: Mapping[Hashable, Sequence[str]], candidates: Mapping[Hashable, str]) -> None:
    if not candidates and not references:
        raise CaptionerError("captions to score: there are none; give at least one")
    for have, lack, what in ((candidates, references, "references"), (references, candidates, "a caption to score")):
        missing = [key for key in have if key not in lack]
        if missing:
            raise CaptionerError(f"images without {what}: {shown(missing)}; give the same images on both sides")
    bare = [key for key, texts in references.items() if not texts]
    if bare:
        raise CaptionerError(f"images without references: {shown(bare)}; give at least one caption for each")
    strange = [
        key
        for key, texts in references.items()
        if isinstance(texts, str) or not all(isinstance(text, str) for text in (*texts, candidates[key]))
    ]
    if strange:
        raise CaptionerError(
            f"images whose captions are no text: {shown(strange)}; give a list of references and one caption for each"
        )


def shown(keys: Sequence[Hashable]) -> str:
    """The first few of many keys, for a message."""
    return ", ".join(map(repr, keys[:5])) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _tokenize(captions: list[str], java: Java | None) -> list[str]:
    if java:
        return ptb.ptb_tokenize(captions, java)
    return [" ".join(scored_tokens(caption)) for caption in captions]


def _python_metrics(
    references: list[list[str]], candidates: list[str]
) -> tuple[dict[str, Sequence[Any]], list[dict[str, Any]]]:
    """Everything but METEOR, of tokenized captions: metric -> (overall, of each); and of each the counts that BLEU
    sums."""
    BleuScorer, Cider = _pycocoevalcap()
    truth, guess = dict(enumerate(references)), {row: [text] for row, text in enumerate(candidates)}
    scorer = BleuScorer(n=4)
    for candidate, texts in zip(candidates, references, strict=True):
        scorer += (candidate, texts)
    overall, each = scorer.compute_score(option="closest", verbose=0)
    metrics: dict[str, Sequence[Any]] = {f"bleu_{n}": (overall[n - 1], each[n - 1]) for n in range(1, 5)}
    rouge = [rouge_l(candidate, texts) for candidate, texts in zip(candidates, references)]
    metrics["rouge_l"] = (sum(rouge) / len(rouge), rouge)
    metrics["cider_d"] = Cider().compute_score(truth, guess)  # pycocoevalcap calls it CIDEr
    return metrics, scorer.ctest


def _pycocoevalcap() -> tuple[type, type]:
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise CaptionerError(
            f"pycocoevalcap: cannot be imported ({error}); install it with pip install pycocoevalcap==1.2"
        ) from error
    return BleuScorer, Cider
