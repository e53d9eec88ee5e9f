"""Two common ways to write beam search, one image at a time, as baselines for the batched search.

Both follow the rules of ``captioner.search`` (K slots, a finished hypothesis closes its slot, score = log-probability /
length), so in float64 all three give the same captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from captioner.decoder.protocol import Decoder, State
from captioner.vocabulary.vocabulary import END, PAD, START, UNK

Best = tuple[tuple[int, ...], float]
"""Tokens of the best caption, and its score."""


@torch.no_grad()
def cached_loop(
    decoder: Decoder, features: Tensor, beam_size: int, max_length: int = 30, alpha: float = 1.0
) -> list[Best]:
    """A good loop: attention keys are computed once an image, and its hypotheses run as one batch.

    Args:
        features: (I, P, C).
    """
    best = []
    for image in features.split(1):
        memory = decoder.encode(image)

        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            logits, state, _ = decoder.step(tokens.unsqueeze(0), state, memory)
            return logits[0], state

        def reorder(state: State, parents: Tensor) -> State:
            return state.reorder(parents.unsqueeze(0))

        state = decoder.initial_state(memory, beam_size)
        best.append(_search(state, step, reorder, beam_size, max_length, alpha))
    return best


@torch.no_grad()
def textbook_loop(
    decoder: Decoder, features: Tensor, beam_size: int, max_length: int = 30, alpha: float = 1.0
) -> list[Best]:
    """The loop of tutorials: features are repeated for every hypothesis and encoded again at every step.

    Args:
        features: (I, P, C).
    """
    best = []
    for image in features.split(1):

        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            memory = decoder.encode(image.expand(len(tokens), -1, -1))
            logits, state, _ = decoder.step(tokens.unsqueeze(1), state, memory)
            return logits[:, 0], state

        def reorder(state: State, parents: Tensor) -> State:
            return state.select(parents)

        state = decoder.initial_state(decoder.encode(image.expand(beam_size, -1, -1)), 1)
        best.append(_search(state, step, reorder, beam_size, max_length, alpha))
    return best


def _search(
    state: State,
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    reorder: Callable[[State, Tensor], State],
    beam_size: int,
    max_length: int,
    alpha: float,
) -> Best:
    """Beam search of one image; ``step`` takes tokens (k,) to logits (k, V)."""
    tokens = torch.full((beam_size,), START)
    totals = torch.zeros(beam_size, 1)
    captions: list[list[int]] = [[] for _ in range(beam_size)]
    complete: list[Best] = []
    slots = beam_size
    for length in range(max_length + 1):
        logits, state = step(tokens, state)
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
        values, index = (scores[0] if length == 0 else scores.view(-1)).topk(slots)
        parents, following = index // logits.shape[-1], index % logits.shape[-1]
        keep = []
        chosen = zip(values.tolist(), parents.tolist(), following.tolist(), strict=True)
        for rank, (value, parent, token) in enumerate(chosen):
            if value == -math.inf:
                continue
            if token == END:
                complete.append((tuple(captions[parent]), value / (length + 1) ** alpha))
            else:
                keep.append(rank)
        slots = beam_size - len(complete)
        if slots == 0 or not keep:
            break
        kept = torch.tensor(keep)
        captions = [[*captions[int(parents[rank])], int(following[rank])] for rank in keep]
        state, tokens, totals = reorder(state, parents[kept]), following[kept], values[kept].unsqueeze(1)
    return max(complete, key=lambda caption: caption[1])
