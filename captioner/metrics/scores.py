"""BLEU-1..4, METEOR, ROUGE-L and CIDEr-D of captions, comparable with published numbers (pycocoevalcap 1.2)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from captioner.errors import CaptionerError
from captioner.metrics import meteor as meteor_program
from captioner.metrics import ptb
from captioner.metrics.java import Java, find_java
from captioner.metrics.rouge import rouge_l
from captioner.vocabulary.tokenizer import scored_tokens

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider_d")
OWN_TOKENIZER = "captioner (Penn Treebank style; no Java runs here)"


@dataclass(frozen=True)
class Scores:
    """What ``score`` gives.

    Attributes:
        overall: metric -> score of all candidates together, as fractions (0.18, not 18); CIDEr-D may exceed 1.
        per_image: id -> metric -> score of that candidate. BLEU of all candidates is no mean of these; the others nearly or exactly.
        signature: tool, version, tokenizer, meteor, java, images, references: what the numbers depend on.
    """

    overall: dict[str, float]
    per_image: dict[Hashable, dict[str, float]]
    signature: dict[str, Any]


@dataclass(frozen=True)
class References:
    """References tokenized once, for captions that are scored against them again and again; ``Scorer.references`` makes them.

    Attributes:
        texts: image id -> captions as written.
        tokens: image id -> the same, tokenized.
    """

    texts: Mapping[Hashable, Sequence[str]]
    tokens: Mapping[Hashable, list[str]]


class Scorer:
    """Scores any number of caption sets; METEOR, which takes seconds to read its tables, is started once for all of them.

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

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._meteor:
            self._meteor.close()

    def references(self, references: Mapping[Hashable, Sequence[str]]) -> References:
        """Tokenize references that ``score`` will get more than once."""
        tokens = iter(_tokenize([text for texts in references.values() for text in texts], self._java))
        return References(references, {key: [next(tokens) for _ in texts] for key, texts in references.items()})

    def score(self, references: Mapping[Hashable, Sequence[str]] | References, candidates: Mapping[Hashable, str]) -> Scores:
        """Score one caption for each image against that image's references; see the function ``score``."""
        known = references if isinstance(references, References) else None
        texts = known.texts if known else references
        _check(texts, candidates)
        tokens = iter(_tokenize([text for key in candidates for text in (candidates[key], *(() if known else texts[key]))], self._java))
        ours, theirs = [], []
        for key in candidates:
            ours.append(next(tokens))
            theirs.append(known.tokens[key] if known else [next(tokens) for _ in texts[key]])
        if not any(text for group in theirs for text in group):
            raise CaptionerError("references: none of them has a word; give captions in words")
        if self._meteor is None:
            metrics = _python_metrics(theirs, ours)
        else:  # METEOR works in its own process: beside the others, not after them
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(self._meteor.score, theirs, ours)
                try:
                    metrics = _python_metrics(theirs, ours)
                    metrics["meteor"] = running.result()
                except BaseException:  # the pool would wait for it
                    self._meteor.close()
                    raise
        names = [name for name in METRICS if name in metrics]
        return Scores(
            overall={name: float(metrics[name][0]) for name in names},
            per_image={key: {name: float(metrics[name][1][row]) for name in names} for row, key in enumerate(candidates)},
            signature=self._signature(len(ours), sum(map(len, theirs))),
        )

    def _signature(self, images: int, references: int) -> dict[str, Any]:
        absent = "absent: not asked for" if not self._wanted else "absent: no Java runs here"
        return {
            "tool": "pycocoevalcap",
            "version": importlib.metadata.version("pycocoevalcap"),
            "tokenizer": ptb.NAME if self._java else OWN_TOKENIZER,
            "meteor": meteor_program.NAME if self._meteor else absent,
            "java": self._java.version if self._java else "none",
            "images": images,
            "references": references,
        }


def score(references: Mapping[Hashable, Sequence[str]], candidates: Mapping[Hashable, str], *, meteor: bool = True) -> Scores:
    """Score one caption for each image against that image's references.

    Tokens are those of Stanford's PTBTokenizer where a Java runs, else of our own; the signature says which. METEOR is absent where
    no Java runs, never imitated. CIDEr-D takes its document frequencies from ``references``, so that a subset is not comparable.

    Args:
        references: image id -> its captions, as written.
        candidates: image id -> the caption to score, as written; may be empty. The same ids as ``references``.
        meteor: False leaves METEOR out (it takes some seconds to start; ``Scorer`` starts it once for many calls).

    Raises:
        CaptionerError: no image, an image on one side only, an image without references, references without a word, or a Java
            program failed.
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
    strange = [key for key, texts in references.items() if isinstance(texts, str) or not all(isinstance(text, str) for text in (*texts, candidates[key]))]
    if strange:
        raise CaptionerError(f"images whose captions are no text: {shown(strange)}; give a list of references and one caption for each")


def shown(keys: Sequence[Hashable]) -> str:
    """The first few of many keys, for a message."""
    return ", ".join(map(repr, keys[:5])) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _tokenize(captions: list[str], java: Java | None) -> list[str]:
    if java:
        return ptb.ptb_tokenize(captions, java)
    return [" ".join(scored_tokens(caption)) for caption in captions]


def _python_metrics(references: list[list[str]], candidates: list[str]) -> dict[str, tuple[float, Sequence[float]]]:
    """Everything but METEOR, of tokenized captions."""
    bleu, cider = _pycocoevalcap()
    truth, guess = dict(enumerate(references)), {row: [text] for row, text in enumerate(candidates)}
    overall, each = bleu(truth, guess)
    metrics = {f"bleu_{n}": (overall[n - 1], each[n - 1]) for n in range(1, 5)}
    rouge = [rouge_l(candidate, texts) for candidate, texts in zip(candidates, references)]
    metrics["rouge_l"] = (sum(rouge) / len(rouge), rouge)
    metrics["cider_d"] = cider(truth, guess)  # pycocoevalcap calls it CIDEr
    return metrics


def _pycocoevalcap() -> tuple[Callable, Callable]:
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise CaptionerError(f"pycocoevalcap: cannot be imported ({error}); install it with pip install pycocoevalcap==1.2") from error
    return lambda truth, guess: Bleu(4).compute_score(truth, guess, verbose=0), Cider().compute_score
