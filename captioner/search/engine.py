"""Search state: active and finished hypotheses of a batch of images.

An image has K slots in G groups of equal size. Beam search has one group, diverse beam search several, and in sampling
every slot is its own group. A hypothesis whose chosen continuation is END is finished and closes one slot of its group;
the others go on with one slot fewer, as in the code of Xu et al. 2015 (Show, Attend and Tell). K = 1 is greedy search.
An image is done when all its slots are closed, or when none of its active hypotheses can beat its finished ones.

Tensors are dense: a closed slot holds a hypothesis with log-probability minus infinity. Two things keep a CPU from
computing many of those. Done images leave the batch, and with one group the active hypotheses of each image move to the
front so that the last slots can be dropped. A GPU runs the step as a graph of fixed shapes, so there both are off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captioner.decoder.protocol import Decoder, Memory
from captioner.errors import CaptionerError
from captioner.search.constraints import Constraints
from captioner.search.hypothesis import Hypothesis, StepRecord, unroll
from captioner.vocabulary.vocabulary import END, START

# Done images stay in the batch until they are this fraction of it: removing them copies the memory of all others.
_COMPACT_AT = 1 / 16
_BLOCK_VALUES = 1 << 17  # logits in a block of ``_log_sum_exp``; 512 KiB in float32


@dataclass(frozen=True)
class Frontier:
    """What a strategy may want to know beside the logits.

    Attributes:
        slots: (J, G) int64, open slots of each group.
        images: (J,) int64, indices of the images in the whole batch.
        step: tokens so far; at step 0 each image has one empty hypothesis.
    """

    slots: Tensor
    images: Tensor
    step: int


class Strategy(Protocol):
    """How continuations are chosen. ``groups`` divides ``beam_size``. Slots of a group are adjacent, and a hypothesis
    stays in its group."""

    beam_size: int
    groups: int

    def choose(self, logits: Tensor, offsets: Tensor, frontier: Frontier) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of every group.

        Args:
            logits: (J, K', V), minus infinity for banned tokens.
            offsets: (J, K'); logits + offsets are the log-probabilities of the continued hypotheses. Minus infinity for
                hypotheses that are not active.
            frontier: the rest of the search state.

        Returns:
            Log-probabilities (J, K), parents (J, K) int64 below K', tokens (J, K) int64. Search takes the first ones of
            each group, as many as it has open slots. Missing continuations have log-probability minus infinity.
        """


class _Finished:
    """Finished hypotheses, and the best scores of each image in the batch.

    Every step adds dense (J, K) tensors with a mask of what finished; picking the finished ones at once would make a
    GPU wait for the CPU at every step.
    """

    def __init__(self, images: int, keep: int, device: torch.device) -> None:
        self.keep = keep
        self.best = torch.full((images, keep), -math.inf, device=device)  # (J, keep), falling
        self._columns: list[tuple[Tensor, ...]] = []

    def add(self, ends: Tensor, totals: Tensor, scores: Tensor, parents: Tensor, images: Tensor, step: int) -> None:
        """``ends`` (J, K) bool marks the continuations that finished; ``images`` (J,) are the images of the rows."""
        steps = torch.full_like(parents, step)
        columns = (ends, images.unsqueeze(1).expand_as(parents), steps, parents, totals, scores)
        self._columns.append(tuple(column.flatten() for column in columns))
        new = scores.masked_fill(~ends, -math.inf)
        self.best = torch.cat([self.best.to(new.dtype), new], dim=1).topk(self.keep, dim=1).values

    def select(self, rows: Tensor) -> None:
        """Only these rows of the batch go on."""
        self.best = self.best[rows]

    def columns(self) -> tuple[Tensor, ...]:
        """Image, step, slot, log-probability and score (H,) of all finished hypotheses, in the order of finishing."""
        ends, *columns = (torch.cat(column) for column in zip(*self._columns, strict=True))
        index = ends.nonzero().squeeze(1)
        return tuple(column[index] for column in columns)


@torch.no_grad()
def search(
    decoder: Decoder,
    memory: Memory,
    images: int,
    strategy: Strategy,
    constraints: Constraints,
    *,
    length_normalisation: float = 0.0,
    length_reward: float = 0.0,
    keep: int = 1,
    attention: bool = False,
    device: torch.device | str = "cpu",
    fixed_shapes: bool | None = None,
) -> list[list[Hypothesis]]:
    """Search captions of all ``images`` images of ``memory`` (which is on ``device``) at once.

    A finished hypothesis of log-probability L and n tokens (END included) scores L / n ** length_normalisation +
    length_reward * n. Scores rank finished hypotheses. Active ones, which all have the same length, are ranked by
    log-probability.

    An active hypothesis scores at best L / (max_length + 1) ** length_normalisation plus the reward of as many tokens:
    log-probabilities only fall, and no caption is longer. An image is done early when that is no more than its
    ``keep``-th best finished score, so stopping early never changes the result.

    Args:
        keep: hypotheses returned for each image.
        attention: also return attention weights.
        fixed_shapes: give every step after the first the same shapes; None: on a GPU only.

    Returns:
        For each image 1 to ``keep`` hypotheses, best score first.

    Raises:
        CaptionerError: no caption meets the constraints, the decoder gives values that are not finite, or captions may
            be longer than it can give.
    """
    limit = getattr(decoder, "longest", None)
    if limit is not None and constraints.max_length > limit:
        raise CaptionerError(
            f"evaluate.max_length={constraints.max_length}: the model gives captions of at most {limit} words; lower "
            f"it to {limit}, or train again with vocab.max_length={constraints.max_length}"
        )
    if images == 0:
        return []
    device = torch.device(device)
    if fixed_shapes is None:
        fixed_shapes = device.type == "cuda"
    size, groups, longest = strategy.beam_size, strategy.groups, constraints.max_length
    finished = _Finished(images, min(keep, size), device)
    records: list[StepRecord] = []
    image_of = row_of = torch.arange(images, device=device)  # (J,) image of each row, (I,) row of each image
    slots = torch.full((images, groups), size // groups, device=device)  # open slots
    ranks = torch.arange(size // groups, device=device)
    totals = torch.zeros(images, 1, device=device)  # (J, K') log-probabilities; minus infinity: not active
    tokens = torch.full((images, 1), START, dtype=torch.int64, device=device)
    state = decoder.initial_state(memory, 1)  # all hypotheses begin alike: one is enough for the first step
    constraints.begin(images, device)
    for step in range(longest + 1):
        logits, state, weights = decoder.step(tokens, state, memory)  # (J, K', V), state, (J, K', P)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        offsets = totals - _log_sum_exp(logits)  # (J, K'); before the bans, so that a ban changes no probability
        constraints.apply(logits, step)
        values, parents, tokens = strategy.choose(logits, offsets, Frontier(slots, image_of, step))  # (J, K)
        chosen = (ranks < slots.unsqueeze(2)).flatten(1) & (values > -math.inf)
        ends = chosen & (tokens == END)
        scores = values / (step + 1) ** length_normalisation + length_reward * (step + 1)
        finished.add(ends, values, scores, parents, image_of, step)
        slots = slots - ends.unflatten(1, (groups, -1)).sum(2)
        totals = values.masked_fill(~chosen | ends, -math.inf)
        bound = totals.amax(1) / (longest + 1) ** length_normalisation + max(0.0, length_reward) * (longest + 1)
        done = bound <= finished.best[:, -1]  # also where nothing is active
        totals = totals.masked_fill(done.unsqueeze(1), -math.inf)
        active = totals > -math.inf
        # the only point of a step at which the CPU waits for a GPU
        remaining, width, invalid = torch.stack([(~done).sum(), active.sum(1).amax(), values.isnan().sum()]).tolist()
        if invalid:
            raise CaptionerError(
                "caption search: the model gives values that are not finite; its training diverged, train it again"
            )
        if remaining == 0:
            break
        if not fixed_shapes and groups == 1 and width < size:
            order = active.byte().argsort(dim=1, descending=True, stable=True)[:, :width]  # active ones first
            totals, parents, tokens = (tensor.gather(1, order) for tensor in (totals, parents, tokens))
        records.append(StepRecord(row_of, tokens, parents, weights if attention else None))
        if not fixed_shapes and len(done) - remaining >= _COMPACT_AT * len(done):
            rows = (~done).nonzero().squeeze(1)
            memory, state = memory.select(rows), state.select(rows)
            constraints.select(rows)
            finished.select(rows)
            image_of, slots = image_of[rows], slots[rows]
            totals, parents, tokens = totals[rows], parents[rows], tokens[rows]
            row_of = torch.zeros_like(row_of).scatter_(0, image_of, torch.arange(remaining, device=device))
        state = state.reorder(parents)
        constraints.advance(parents, tokens)
    return _collect(records, finished, images)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """log sum exp over tokens: (J, K, V) -> (J, K).

    On a CPU a block of rows at a time, so that intermediate values stay in the cache: a third faster at V = 9,500.
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(-1)
    blocks = logits.flatten(0, 1).split(max(1, _BLOCK_VALUES // logits.shape[-1]))
    return torch.cat([block.logsumexp(-1) for block in blocks]).view(logits.shape[:2])


def _collect(records: list[StepRecord], finished: _Finished, images: int) -> list[list[Hypothesis]]:
    """The best ``keep`` finished hypotheses of every image. Of equal scores the one that finished first is better."""
    captions: list[list[Hypothesis]] = [[] for _ in range(images)]
    columns = finished.columns()
    score = columns[-1]
    order = score.argsort(descending=True, stable=True)
    order = order[columns[0][order].argsort(stable=True)]  # by image, best first
    image = columns[0][order]
    first = torch.searchsorted(image, image)  # (H,) where the hypotheses of each one's image begin
    order = order[torch.arange(len(order), device=order.device) - first < finished.keep]
    image, step, slot, total, score = (column[order] for column in columns)
    all_tokens, all_weights = unroll(records, image, step, slot)
    if all_weights is not None:
        all_weights = all_weights.float().cpu()
    rows = zip(image.tolist(), step.tolist(), all_tokens.tolist(), total.tolist(), score.tolist(), strict=True)
    for row, (index, length, tokens, log_probability, points) in enumerate(rows):
        weights = None if all_weights is None else all_weights[row, :length].clone()
        captions[index].append(Hypothesis(tuple(tokens[:length]), log_probability, points, weights))
    if not all(captions):
        raise CaptionerError(
            "caption search: no caption is possible under evaluate.min_length, evaluate.no_repeat_ngram and the "
            "vocabulary; lower the first or the second"
        )
    return captions
