"""The vocabulary of a decoder: words and their ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.fingerprint import fingerprint
from captioner.sidecar import write_atomically
from captioner.vocabulary.tokenizers import ENGLISH, TOKENIZERS, Tokenizer

PAD, START, END, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
FORMAT_VERSION = 1


class Vocabulary:
    """Words and their ids: ``<pad> <start> <end> <unk>`` first, then the words of the training captions by
    descending count.

    Args:
        words: all words, the four special words first.
        counts: number of occurrences of each word in the training captions; 0 for special words.
        facts: further contents of the file (``tokenizer``, ``min_count``, ``max_length``, ``vectors``, ``coverage``
            ...); JSON-serialisable.

    Attributes:
        tokenizer: how captions become these words; ``english`` where the facts name none, as in older files.

    Raises:
        CaptionerError: the special words are not first, a word is repeated, counts and words differ in length, or the
            tokenizer is unknown.
    """

    def __init__(
        self, words: Sequence[str], counts: Sequence[int] | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        self.words = list(words)
        self.counts = list(counts) if counts is not None else [0] * len(self.words)
        self.facts = dict(facts or {})
        self.tokenizer = _tokenizer(self.facts.get("tokenizer", ENGLISH.name))
        if tuple(self.words[: len(SPECIALS)]) != SPECIALS:
            raise CaptionerError(
                f"vocabulary: its first words are {self.words[:4]!r}, not {' '.join(SPECIALS)}; run the vocab stage "
                "again"
            )
        if len(self.counts) != len(self.words):
            raise CaptionerError(
                f"vocabulary: {len(self.words)} words but {len(self.counts)} counts; run the vocab stage again"
            )
        self._ids = {word: row for row, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise CaptionerError(f"vocabulary: the word {twice!r} occurs twice; run the vocab stage again")

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    @property
    def max_length(self) -> int | None:
        """Maximum length of a training caption, without <start> and <end>; None if the file does not have it."""
        return self.facts.get("max_length")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what determines the ids of a caption: ordered words, maximum length and tokenizer."""
        # english is left out: older vocabularies do not name it
        named = {} if self.tokenizer == ENGLISH else {"tokenizer": self.tokenizer.name}
        return fingerprint({"words": self.words, "max_length": self.max_length, **named})

    def tokenize(self, caption: str) -> list[str]:
        """The tokens of a caption as written; of unknown words too.

        Raises:
            CaptionerError: a package that the tokenizer needs is missing.
        """
        return self.tokenizer.tokenize(caption)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens, UNK for unknown ones; adds neither START nor END and does not truncate.

        A token spelled like a special word (``<end>`` in an untrusted caption) is an unknown word.
        """
        return [row if (row := self._ids.get(token, UNK)) >= len(SPECIALS) else UNK for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of ids up to the first END, without PAD and START, joined as the tokenizer's language is written.

        Raises:
            CaptionerError: an id outside the vocabulary.
        """
        words = []
        for row in map(int, ids):
            if row == END:
                break
            if not 0 <= row < len(self.words):
                raise CaptionerError(
                    f"vocabulary: it has {len(self.words)} words but the id is {row}; use the vocabulary that the "
                    "model was trained with"
                )
            if row not in (PAD, START):
                words.append(self.words[row])
        return self.tokenizer.join(words)

    def to_json(self) -> dict[str, Any]:
        """The content of the file as JSON values."""
        return {**self.facts, "format_version": FORMAT_VERSION, "words": self.words, "counts": self.counts}

    @classmethod
    def from_json(cls, content: Any, source: str = "vocabulary") -> Vocabulary:
        """The vocabulary of a file's content; ``source`` is its name in errors.

        Raises:
            CaptionerError: not the content of a vocabulary file of this format.
        """
        remedy = "create it with the vocab stage"
        if not isinstance(content, dict) or not isinstance(content.get("words"), list):
            raise CaptionerError(f"{source}: not a vocabulary (a mapping with a list 'words'); {remedy}")
        if content.get("format_version") != FORMAT_VERSION:
            raise CaptionerError(
                f"{source}: vocabulary format {content.get('format_version')!r}, this program reads "
                f"{FORMAT_VERSION}; {remedy}"
            )
        words, counts = content["words"], content.get("counts", [0] * len(content["words"]))
        invalid = [word for word in words if not isinstance(word, str)]
        if invalid:
            raise CaptionerError(f"{source}: the word {invalid[0]!r} is not text; {remedy}")
        if not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
            raise CaptionerError(f"{source}: 'counts' is not a list of integers; {remedy}")
        max_length = content.get("max_length")
        if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
            raise CaptionerError(f"{source}: max_length={max_length!r} is not a positive integer; {remedy}")
        facts = {key: value for key, value in content.items() if key not in ("format_version", "words", "counts")}
        try:
            return cls(words, counts, facts)
        except CaptionerError as error:
            raise CaptionerError(f"{source}: {error.message}") from None

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON, atomically; the same vocabulary gives the same bytes."""
        write_atomically(path, json.dumps(self.to_json(), sort_keys=True, indent=0, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary file.

        Raises:
            CaptionerError: the file is missing or not a vocabulary.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise CaptionerError(
                f"{path}: cannot be read ({error.strerror}); create it with the vocab stage"
            ) from error
        except (ValueError, RecursionError) as error:
            raise CaptionerError(f"{path}: not JSON ({error}); create it with the vocab stage") from error
        return cls.from_json(content, str(path))


def build_vocabulary(captions: Iterable[str], min_count: int = 1, tokenizer: Tokenizer = ENGLISH) -> Vocabulary:
    """The words seen at least ``min_count`` times in ``captions``, by descending count, then alphabetically."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(tokenizer.tokenize(caption))
    return vocabulary_of_counts(counts, min_count, {"tokenizer": tokenizer.name})


def vocabulary_of_counts(
    counts: Mapping[str, int], min_count: int = 1, facts: dict[str, Any] | None = None
) -> Vocabulary:
    """The vocabulary of token counts, with ``facts`` for the file."""
    kept = [(word, count) for word, count in counts.items() if count >= min_count and word not in SPECIALS]
    kept.sort(key=lambda item: (-item[1], item[0]))
    return Vocabulary(
        [*SPECIALS, *(word for word, _ in kept)], [0] * len(SPECIALS) + [count for _, count in kept], facts
    )


def _tokenizer(name: Any) -> Tokenizer:
    tokenizer = TOKENIZERS.get(name) if isinstance(name, str) else None
    if tokenizer is None:
        raise CaptionerError(
            f"vocabulary: the tokenizer {name!r:.60} is none of {', '.join(TOKENIZERS)}; run the vocab stage again"
        )
    return tokenizer
