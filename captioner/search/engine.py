"""The books of a search: which hypotheses live, which are finished, which pictures are done.

A picture has K slots in G groups of equal size (one group, but in diverse beam search and in sampling). A hypothesis
that chooses <end> among the best continuations closes a slot of its group for good, and the others go on with one slot
fewer, as in the code of Xu et al. 2015 (Show, Attend and Tell). With K = 1 that is greedy search. A picture is done
when its slots are closed, or earlier when nothing that still lives can outdo what it has finished; it then leaves the
batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captioner.errors import CaptionerError
from captioner.search.constraints import Constraints
from captioner.search.hypothesis import Hypothesis, StepRecord, unroll
from captioner.search.protocol import Memory, StepDecoder
from captioner.vocabulary.vocabulary import END, START

# Done pictures stay in the batch until they are this share of it: leaving costs a copy of the others' memory.
_COMPACT_AT = 1 / 16
_BLOCK_VALUES = 1 << 17


@dataclass(frozen=True)
class Frontier:
    """Whose continuations are to be chosen.

    Attributes:
        numbers: (R,) int64, the live hypotheses, numbered row * K' + k and rising.
        shape: (J, K') of all hypotheses of the J pictures still searched; K' is 1 before the first word.
        slots: (J, G) int64, open slots of each group.
        pictures: (J,) int64, the pictures' numbers in the whole batch.
        step: words so far.
    """

    numbers: Tensor
    shape: tuple[int, int]
    slots: Tensor
    pictures: Tensor
    step: int


class Strategy(Protocol):
    """How continuations are chosen. ``groups`` divides ``beam_size``; slots of a group are neighbours, and a hypothesis
    stays in its group."""

    beam_size: int
    groups: int

    def choose(self, logits: Tensor, offsets: Tensor, frontier: Frontier) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of every group.

        Args:
            logits: (R, V) of the live hypotheses, minus infinity where banned.
            offsets: (R,), what makes a logit the log-probability of the whole continued hypothesis.
            frontier: which hypotheses they are.

        Returns:
            Log-probabilities (J, K), parents (J, K) int64 in 0..K'-1, words (J, K) int64; in each group those that come
            first are taken, as many as it has open slots. Where fewer continuations exist the rest have minus infinity.
        """


class _Finished:
    """Finished hypotheses in the order in which they ended, and each live picture's best scores."""

    def __init__(self, images: int, keep: int, device: torch.device) -> None:
        self.keep = keep
        self.best = torch.full((images, keep), -math.inf, device=device)  # (J, keep), falling
        self.images: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.slots: list[Tensor] = []
        self.totals: list[Tensor] = []
        self.scores: list[Tensor] = []

    def add(self, ends: Tensor, totals: Tensor, scores: Tensor, parents: Tensor, live: Tensor, step: int) -> None:
        """``ends`` (J, K) bool marks the continuations that are finished; ``live`` (J,) numbers the rows' pictures."""
        rows, ranks = ends.nonzero(as_tuple=True)
        if not len(rows):
            return
        self.images.append(live[rows])
        self.steps.append(torch.full_like(rows, step))
        self.slots.append(parents[rows, ranks])
        self.totals.append(totals[rows, ranks])
        self.scores.append(scores[rows, ranks])
        fresh = scores.masked_fill(~ends, -math.inf)
        self.best = torch.cat([self.best.to(fresh.dtype), fresh], dim=1).topk(self.keep, dim=1).values


@torch.no_grad()
def search(
    decoder: StepDecoder,
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
) -> list[list[Hypothesis]]:
    """Search captions of all ``images`` pictures of ``memory`` (which lies on ``device``) at once.

    A finished hypothesis of log-probability L and n words, <end> among them, scores L / n ** length_normalisation +
    length_reward * n. Scores rank finished hypotheses; what goes on is ranked by log-probability, among hypotheses of
    one length.

    A live hypothesis can at best end with L / (max_length + 1) ** length_normalisation and the reward of as many words:
    what follows adds nothing positive to L, and no caption is longer. A picture is done early when that is no more than
    its ``keep``-th best finished score, so stopping early never changes what is returned.

    Returns:
        For each picture 1 to ``keep`` hypotheses, best score first.

    Raises:
        CaptionerError: no caption meets the constraints, or the decoder gives values that are not finite.
    """
    if images == 0:
        return []
    size, groups, longest = strategy.beam_size, strategy.groups, constraints.max_length
    finished = _Finished(images, min(keep, size), device)
    records: list[StepRecord] = []
    live = rows = torch.arange(images, device=device)  # (J,) the picture of each row, and (I,) the row of each picture
    slots = torch.full((images, groups), size // groups, device=device)  # open slots
    ranks = torch.arange(size // groups, device=device)
    totals = torch.zeros(images, 1, device=device)  # (J, K'), minus infinity for what does not live
    words = torch.full((images, 1), START, dtype=torch.int64, device=device)
    state = decoder.start(memory, 1)  # all hypotheses begin alike: one is enough for the first step
    constraints.begin(images, device)
    for step in range(longest + 1):
        flat = totals.reshape(-1)
        numbers = (
            (flat > -math.inf).nonzero().squeeze(1)
        )  # (R,): closed slots and pictures that are done cost nothing from here on
        some = numbers if len(numbers) < len(flat) else None
        logits, state, weights = decoder.step(words, state, memory, some)  # (R, V)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        offsets = flat[numbers] - _log_sum_exp(logits)  # (R,); before the bans, so that a ban changes no probability
        constraints.apply(logits, step, some)
        values, parents, words = strategy.choose(
            logits, offsets, Frontier(numbers, totals.shape, slots, live, step)
        )  # (J, K)
        if values.isnan().any():
            raise CaptionerError(
                "caption search: the model gives values that are not finite; its training diverged, train it again"
            )
        chosen = (ranks < slots.unsqueeze(2)).flatten(1) & (values > -math.inf)
        ends = chosen & (words == END)
        scores = values / (step + 1) ** length_normalisation + length_reward * (step + 1)
        finished.add(ends, values, scores, parents, live, step)
        slots = slots - ends.unflatten(1, (groups, -1)).sum(2)
        totals = values.masked_fill(~chosen | ends, -math.inf)
        records.append(StepRecord(rows, words, parents, weights if attention else None))
        bound = totals.amax(1) / (longest + 1) ** length_normalisation + max(0.0, length_reward) * (longest + 1)
        done = bound <= finished.best[:, -1]  # so too where nothing lives
        left = len(done) - int(done.sum())
        if left == 0:
            break
        totals = totals.masked_fill(done.unsqueeze(1), -math.inf)
        if len(done) - left >= _COMPACT_AT * len(done):
            stay = (~done).nonzero().squeeze(1)
            memory, state = memory.select(stay), state.images(stay)
            constraints.select(stay)
            live, words, parents, totals, slots = live[stay], words[stay], parents[stay], totals[stay], slots[stay]
            finished.best = finished.best[stay]
            rows = torch.zeros(images, dtype=torch.int64, device=device).scatter_(
                0, live, torch.arange(left, device=device)
            )
        state = state.select(parents)
        constraints.advance(parents, words)
    return _collect(records, finished, images)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """log sum exp over the words: (R, V) -> (R,).

    On a CPU a block of rows at a time, so that what it writes in between stays in the cache: a third faster at V =
        9,500.
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(-1)
    return torch.cat([rows.logsumexp(-1) for rows in logits.split(max(1, _BLOCK_VALUES // logits.shape[-1]))])


def _collect(records: list[StepRecord], finished: _Finished, images: int) -> list[list[Hypothesis]]:
    """The best ``keep`` finished hypotheses of every picture; of equal scores the one that ended first."""
    captions: list[list[Hypothesis]] = [[] for _ in range(images)]
    if finished.images:
        image, score = torch.cat(finished.images), torch.cat(finished.scores)
        order = score.argsort(descending=True, stable=True)
        order = order[image[order].argsort(stable=True)]  # by picture, best first
        image = image[order]
        first = torch.searchsorted(image, image)  # (H,) where each one's picture begins
        order = order[torch.arange(len(order), device=order.device) - first < finished.keep]
        image, step, slot = (torch.cat(column)[order] for column in (finished.images, finished.steps, finished.slots))
        words, attention = unroll(records, image, step, slot)
        attention = attention.float().cpu() if attention is not None else None
        total = torch.cat(finished.totals)[order]
        facts = zip(image.tolist(), step.tolist(), words.tolist(), total.tolist(), score[order].tolist(), strict=True)
        for row, (picture, length, tokens, log_probability, points) in enumerate(facts):
            weights = attention[row, :length].clone() if attention is not None else None
            captions[picture].append(Hypothesis(tuple(tokens[:length]), log_probability, points, weights))
    if not all(captions):
        raise CaptionerError(
            "caption search: no caption is possible under evaluate.min_length, evaluate.no_repeat_ngram and the vocabulary; "
            "lower the first or the second"
        )
    return captions
