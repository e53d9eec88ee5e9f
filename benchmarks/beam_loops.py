"""Two beam searches as they are commonly written, one picture at a time, to measure the batched one against.

Both follow the same rules as ``captioner.search`` (K slots, a finished hypothesis closes its slot, score =
log-probability over length), so that in float64 all three give the same captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.vocabulary.vocabulary import END, PAD, START, UNK

Best = tuple[tuple[int, ...], float]
"""Words of the best caption, and its score."""


@torch.no_grad()
def cached_loop(
    decoder: CaptionDecoder, features: Tensor, beam_size: int, max_length: int = 30, alpha: float = 1.0
) -> list[Best]:
    """A good one-picture loop: keys computed once a picture, its hypotheses run as one batch.

    Args:
        features: (I, P, C).
    """
    best = []
    for picture in features.split(1):
        memory = decoder.encode(picture)

        def step(words: Tensor, state: Any) -> tuple[Tensor, Any]:
            logits, state, _ = decoder.step(words.unsqueeze(0), state, memory)
            return logits, state

        state = decoder.start(memory, beam_size)
        best.append(
            _search(state, step, lambda state, keep: state.select(keep.unsqueeze(0)), beam_size, max_length, alpha)
        )
    return best


@torch.no_grad()
def textbook_loop(
    decoder: CaptionDecoder, features: Tensor, beam_size: int, max_length: int = 30, alpha: float = 1.0
) -> list[Best]:
    """The tutorial's loop: unprojected features repeated for every hypothesis, projected and made into keys again at
    every step.

    Args:
        features: (I, P, C).
    """
    best = []
    for picture in features.split(1):

        def step(words: Tensor, state: Any) -> tuple[Tensor, Any]:
            memory = decoder.encode(picture.expand(len(words), -1, -1))
            logits, state, _ = decoder.step(words.unsqueeze(1), state, memory)
            return logits, state

        state = decoder.start(decoder.encode(picture.expand(beam_size, -1, -1)), 1)
        best.append(_search(state, step, lambda state, keep: state.images(keep), beam_size, max_length, alpha))
    return best


def _search(
    state: Any,
    step: Callable[[Tensor, Any], tuple[Tensor, Any]],
    select: Callable[[Any, Tensor], Any],
    beam_size: int,
    max_length: int,
    alpha: float,
) -> Best:
    """Beam search of one picture; ``step`` takes words (k,) to logits (k, V)."""
    words = torch.full((beam_size,), START)
    totals = torch.zeros(beam_size, 1, dtype=next(iter(state.tensors)).dtype)
    captions: list[list[int]] = [[] for _ in range(beam_size)]
    complete: list[Best] = []
    slots = beam_size
    for length in range(max_length + 1):
        logits, state = step(words, state)
        scores = torch.log_softmax(logits, dim=-1)  # (k, V)
        scores[:, [PAD, START, UNK]] = -math.inf
        if length == 0:
            scores[:, END] = -math.inf
        if length == max_length:
            end = scores[:, END].clone()
            scores.fill_(-math.inf)
            scores[:, END] = end
        scores = totals + scores
        # at first all hypotheses are the same one
        values, places = (scores[0] if length == 0 else scores.view(-1)).topk(slots)
        parents, following = places // logits.shape[-1], places % logits.shape[-1]
        keep = []
        for rank, (value, parent, word) in enumerate(
            zip(values.tolist(), parents.tolist(), following.tolist(), strict=True)
        ):
            if value == -math.inf:
                continue
            if word == END:
                complete.append((tuple(captions[parent]), value / (length + 1) ** alpha))
            else:
                keep.append(rank)
        slots = beam_size - len(complete)
        if slots == 0 or not keep:
            break
        chosen = torch.tensor(keep)
        captions = [[*captions[int(parents[rank])], int(following[rank])] for rank in keep]
        state, words, totals = select(state, parents[chosen]), following[chosen], values[chosen].unsqueeze(1)
    return max(complete, key=lambda caption: caption[1])
