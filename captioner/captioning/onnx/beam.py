"""Beam search in numpy: ``captioner.search.beam_search`` without torch, with the same scores and the same order.

A hypothesis that chooses END closes one of its image's K slots. An image is done when all are closed, or when none of
its active hypotheses can still beat its finished ones. Of equal scores the hypothesis that finished first is better.
Of equal continuations the one with the lower index (of the hypothesis, then of the word) goes on; torch's top-K leaves
that open.

Shapes: J images still at work, K slots of each, K' <= K hypotheses of the step before, V words, P grid positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from captioner.captioning.onnx.files import SearchRules
from captioner.errors import CaptionerError
from captioner.vocabulary.vocabulary import END, PAD, START, UNK

Arrays = Sequence[np.ndarray]
Step = Callable[[np.ndarray, Arrays, Arrays], tuple[np.ndarray, np.ndarray, Arrays]]
"""Tokens (J, K') int64, memory, state -> logits (J, K', V), attention (J, K', P), the next state."""


@dataclass(frozen=True)
class Hypothesis:
    """A finished caption, as ``captioner.search.Hypothesis``; ``attention`` is (T, P) float32 or None."""

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    attention: np.ndarray | None = None


def beam_search(
    step: Step,
    memory: Arrays,
    state: Arrays,
    rules: SearchRules,
    beam_size: int,
    keep: int = 1,
    attention: bool = False,
) -> list[list[Hypothesis]]:
    """Captions of images by beam search.

    Args:
        step: one token further; its logits may be overwritten.
        memory: each (I, ...).
        state: before START, of one beam: each (I, 1, ...), or a scalar.
        rules: of search.
        beam_size: K.
        keep: hypotheses returned for each image, at most ``beam_size``.
        attention: also return the attention weights.

    Returns:
        For each image 1 to ``keep`` hypotheses, best score first.

    Raises:
        CaptionerError: the model gives values that are not finite, or no caption is possible.
    """
    images = len(memory[0])
    keep = min(keep, beam_size)
    finished: list[list[Hypothesis]] = [[] for _ in range(images)]
    image_of = np.arange(images)  # (J,)
    slots = np.full(images, beam_size)  # (J,) open ones
    best = np.full((images, keep), -np.inf)  # (J, keep) finished scores, falling
    totals = np.zeros((images, 1), np.float32)  # (J, K') log-probabilities; minus infinity: not active
    history = np.full((images, 1, 1), START)  # (J, K', t + 1) tokens, START included
    looked: np.ndarray | None = None  # (J, K', t, P) attention
    for length in range(rules.max_length + 1 if images else 0):
        logits, weights, state = step(history[:, :, -1], memory, state)
        with np.errstate(all="ignore"):  # what is not finite is found below
            offsets = totals - _log_sum_exp(logits)  # (J, K'); before the bans, so that a ban changes no probability
        if np.isnan(offsets).any():
            raise CaptionerError(
                "caption search: the model gives values that are not finite; its training diverged, train it again"
            )
        _ban(logits, length, rules)
        values, parents, tokens = _top(logits + offsets[:, :, None], beam_size)  # (J, K)
        chosen = (np.arange(beam_size) < slots[:, None]) & (values > -np.inf)
        ends = chosen & (tokens == END)
        scores = values / (length + 1) ** rules.length_normalisation
        for row, rank in zip(*ends.nonzero(), strict=True):  # falling in each image, as torch's
            parent = parents[row, rank]
            finished[image_of[row]].append(
                Hypothesis(
                    tuple(history[row, parent, 1:].tolist()),
                    float(values[row, rank]),
                    float(scores[row, rank]),
                    _attention(looked, row, parent, weights.shape[2]) if attention else None,
                )
            )
        best = -np.sort(-np.concatenate([best, np.where(ends, scores, -np.inf)], axis=1), axis=1)[:, :keep]
        slots = slots - ends.sum(1)
        totals = np.where(chosen & ~ends, values, -np.inf)
        # the best score that an active hypothesis can still reach: log-probabilities only fall
        bound = totals.max(1) / (rules.max_length + 1) ** rules.length_normalisation
        rows = (bound > best[:, -1]).nonzero()[0]  # of the images that are not done
        if len(rows) == 0:
            break
        # active hypotheses first; as many columns as the image with most of them has
        active = totals[rows] > -np.inf
        order = (~active).argsort(1, kind="stable")[:, : active.sum(1).max()]  # (J', K'')
        totals, tokens, parents = (np.take_along_axis(array[rows], order, 1) for array in (totals, tokens, parents))
        memory = [array[rows] for array in memory]
        state = [array[rows[:, None], parents] if array.ndim else array for array in state]
        if attention:
            new = weights[rows[:, None], parents][:, :, None]
            looked = new if looked is None else np.concatenate([looked[rows[:, None], parents], new], axis=2)
        history = np.concatenate([history[rows[:, None], parents], tokens[:, :, None]], axis=2)
        image_of, slots, best = image_of[rows], slots[rows], best[rows]
    if not all(finished):
        raise CaptionerError("caption search: the model's vocabulary allows no caption; train with more captions")
    return [sorted(found, key=lambda hypothesis: -hypothesis.score)[:keep] for found in finished]  # a stable sort


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """(J, K', V) -> (J, K')."""
    largest = logits.max(2, keepdims=True)
    return np.log(np.exp(logits - largest).sum(2)) + largest[:, :, 0]


def _ban(logits: np.ndarray, length: int, rules: SearchRules) -> None:
    """Minus infinity for what cannot follow ``length`` words, in place."""
    if length >= rules.max_length:
        kept = logits[:, :, END].copy()
        logits[:] = -np.inf
        logits[:, :, END] = kept
        return
    logits[:, :, [PAD, START, UNK]] = -np.inf
    if length < rules.min_length:
        logits[:, :, END] = -np.inf


def _top(scores: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``size`` largest of (J, K', V) for each image: values (J, K) falling, hypotheses and tokens (J, K) int64.

    Where there are fewer, minus infinity fills the rest.
    """
    images, _, vocabulary = scores.shape
    flat = scores.reshape(images, -1)
    count = min(size, flat.shape[1])
    least = np.partition(flat, -count, axis=1)[:, -count]  # (J,) the smallest one that is taken
    values = np.full((images, size), -np.inf, scores.dtype)
    index = np.zeros((images, size), np.int64)
    for row in range(images):
        found = (flat[row] >= least[row]).nonzero()[0]
        found = found[(-flat[row, found]).argsort(kind="stable")[:count]]
        values[row, :count], index[row, :count] = flat[row, found], found
    return values, index // vocabulary, index % vocabulary


def _attention(looked: np.ndarray | None, row: int, parent: int, positions: int) -> np.ndarray:
    """(T, P) float32 of a hypothesis."""
    return np.zeros((0, positions), np.float32) if looked is None else looked[row, parent].astype(np.float32)
