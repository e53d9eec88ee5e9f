"""What a caption may not contain: words banned by id, an early or a missing <end>, a repeated n-gram, another beginning
than a given one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.errors import CaptionerError
from captioner.vocabulary.tokenizer import tokenize
from captioner.vocabulary.vocabulary import END, PAD, START, UNK, Vocabulary


class Constraints:
    """Bans, written into the logits of one step as minus infinity.

    A ban takes a word out of the choice and leaves the probabilities of the others as the model gave them:
    log-probabilities stay comparable with those of unconstrained captions.

    Args:
        max_length: words of the longest caption; after as many only <end> is left.
        min_length: words of the shortest caption; <end> is banned before.
        no_repeat_ngram: no n-gram of this size occurs twice in a caption (Paulus et al. 2018, section 2.5); 0: allowed.
        prefix: the words that every caption begins with, at most ``max_length``. They go before the other bans, count
            as words of the caption, and their log-probabilities as part of its own.
        banned: ids that are never chosen.

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
        self._history: Tensor | None = None  # (J, K, t) words so far; kept for n-grams alone

    def begin(self, images: int, device: torch.device) -> None:
        """Forget what was; ``images`` pictures with one empty hypothesis each."""
        self._history = torch.zeros(images, 1, 0, dtype=torch.int64, device=device) if self.no_repeat_ngram else None

    def apply(self, logits: Tensor, length: int, live: Tensor | None = None) -> None:
        """Ban in place. ``logits`` (R, V) of the word after ``length`` words, for the hypotheses ``live`` (R,) of J *
        K; None: all."""
        if length < len(self.prefix) or length >= self.max_length:
            only = self.prefix[length] if length < len(self.prefix) else END
            kept = logits[..., only].clone()
            logits.fill_(-math.inf)
            logits[..., only] = kept
            return
        for word in self.banned:
            if word < logits.shape[-1]:
                logits[..., word] = -math.inf
        if length < self.min_length:
            logits[..., END] = -math.inf
        if self._history is not None and length >= self.no_repeat_ngram:
            history = self._history.flatten(0, 1)  # (J * K, t)
            self._ban_repeats(logits, history if live is None else history[live])

    def advance(self, parents: Tensor, words: Tensor) -> None:
        """The hypotheses now continue ``parents`` (J, K) by ``words`` (J, K)."""
        if self._history is not None:
            old = self._history.gather(1, parents.unsqueeze(-1).expand(-1, -1, self._history.shape[-1]))  # (J, K, t)
            self._history = torch.cat([old, words.unsqueeze(-1)], dim=-1)

    def select(self, images: Tensor) -> None:
        """Only the pictures ``images`` (J',) go on."""
        if self._history is not None:
            self._history = self._history[images]

    def _ban_repeats(self, logits: Tensor, history: Tensor) -> None:
        size = self.no_repeat_ngram
        windows = history.unfold(-1, size, 1)  # (R, t - size + 1, size), every n-gram so far
        recent = history[..., history.shape[-1] - size + 1 :].unsqueeze(-2)  # (R, 1, size - 1)
        repeats = (windows[..., :-1] == recent).all(
            -1
        )  # (R, t - size + 1): it began with the words that stand last now
        # a window that does not match points at <pad>, which is banned as it is
        logits.scatter_(-1, torch.where(repeats, windows[..., -1], PAD), -math.inf)


def prefix_words(text: str, vocabulary: Vocabulary, max_length: int, name: str) -> tuple[int, ...]:
    """The ids of a beginning that captions shall have, for ``Constraints``.

    Args:
        text: "a picture of"; tokenized as training captions are.
        max_length: words of the longest caption.
        name: of the option that gave the text, for messages.

    Raises:
        CaptionerError: a word is not in the vocabulary, or there are more than ``max_length``.
    """
    tokens = tokenize(text)
    ids = vocabulary.encode(tokens)
    if UNK in ids:
        word = tokens[ids.index(UNK)]
        raise CaptionerError(
            f"{name}={text!r}: the word {word!r} is not in the model's vocabulary; take words that its training captions have"
        )
    if len(ids) > max_length:
        raise CaptionerError(
            f"{name}={text!r}: {len(ids)} words, but a caption may have {max_length}; raise max_length or shorten it"
        )
    return tuple(ids)
