"""Constraints on captions: banned tokens, minimum and maximum length, no repeated n-gram, a given prefix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.errors import CaptionerError
from captioner.vocabulary.vocabulary import END, PAD, START, UNK, Vocabulary


class Constraints:
    """Banned tokens, set to minus infinity in the logits of one step.

    A ban takes a token out of the choice and leaves the probabilities of the others as the model gave them, so
    log-probabilities stay comparable with those of unconstrained captions.

    Args:
        max_length: words of the longest caption; after as many only END is allowed.
        min_length: words of the shortest caption; END is banned before.
        no_repeat_ngram: no n-gram of this size occurs twice in a caption (Paulus et al. 2018, section 2.5); 0: allowed.
        prefix: token ids that every caption begins with, at most ``max_length``. They override the other bans. They
            count as words of the caption, and their log-probabilities as part of its own.
        banned: token ids that are never chosen.

    Raises:
        ValueError: the prefix is longer than ``max_length``.
    """

    def __init__(
        self,
        max_length: int,
        min_length: int = 0,
        no_repeat_ngram: int = 0,
        prefix: tuple[int, ...] = (),
        banned: tuple[int, ...] = (PAD, START, UNK),
    ) -> None:
        if len(prefix) > max_length:
            raise ValueError(f"a prefix of {len(prefix)} words, captions of at most {max_length}")
        self.max_length, self.min_length, self.no_repeat_ngram = max_length, min_length, no_repeat_ngram
        self.prefix, self.banned = prefix, banned
        self._history: Tensor | None = None  # (J, K, t) tokens so far; kept for n-grams only

    def begin(self, images: int, device: torch.device) -> None:
        """Start a search of ``images`` images with one empty hypothesis each."""
        self._history = torch.zeros(images, 1, 0, dtype=torch.int64, device=device) if self.no_repeat_ngram else None

    def apply(self, logits: Tensor, length: int) -> None:
        """Ban in place. ``logits`` (J, K, V) are of the token after ``length`` tokens."""
        if length < len(self.prefix) or length >= self.max_length:
            only = self.prefix[length] if length < len(self.prefix) else END
            kept = logits[..., only].clone()
            logits.fill_(-math.inf)
            logits[..., only] = kept
            return
        for token in self.banned:
            if token < logits.shape[-1]:
                logits[..., token] = -math.inf
        if length < self.min_length:
            logits[..., END] = -math.inf
        if self._history is not None and length >= self.no_repeat_ngram:
            self._ban_repeats(logits, self._history)

    def advance(self, parents: Tensor, tokens: Tensor) -> None:
        """The new hypotheses (J, K) continue the old ones ``parents`` (J, K) by ``tokens`` (J, K)."""
        if self._history is not None:
            old = self._history.gather(1, parents.unsqueeze(-1).expand(-1, -1, self._history.shape[-1]))  # (J, K, t)
            self._history = torch.cat([old, tokens.unsqueeze(-1)], dim=-1)

    def select(self, images: Tensor) -> None:
        """Only the images with indices ``images`` (J',) go on."""
        if self._history is not None:
            self._history = self._history[images]

    def _ban_repeats(self, logits: Tensor, history: Tensor) -> None:
        size = self.no_repeat_ngram
        windows = history.unfold(-1, size, 1)  # (J, K, t - size + 1, size), every n-gram so far
        recent = history[..., history.shape[-1] - size + 1 :].unsqueeze(-2)  # (J, K, 1, size - 1)
        # (J, K, t - size + 1), the n-grams that begin with the most recent size - 1 tokens
        repeats = (windows[..., :-1] == recent).all(-1)
        # an n-gram that does not match bans PAD, which is banned anyway
        logits.scatter_(-1, torch.where(repeats, windows[..., -1], PAD), -math.inf)


def prefix_words(text: str, vocabulary: Vocabulary, max_length: int, name: str) -> tuple[int, ...]:
    """Token ids of a text that every caption is to begin with, for ``Constraints``.

    Args:
        text: "a picture of", for instance; tokenized as training captions are.
        max_length: words of the longest caption.
        name: of the option that gave the text, for error messages.

    Raises:
        CaptionerError: a word is not in the vocabulary, or there are more than ``max_length``.
    """
    tokens = vocabulary.tokenize(text)
    ids = vocabulary.encode(tokens)
    if UNK in ids:
        word = tokens[ids.index(UNK)]
        raise CaptionerError(
            f"{name}={text!r}: the word {word!r} is not in the model's vocabulary; take words that its training "
            "captions have"
        )
    if len(ids) > max_length:
        raise CaptionerError(
            f"{name}={text!r}: {len(ids)} words, but a caption may have {max_length}; raise max_length or shorten it"
        )
    return tuple(ids)
