"""Diverse beam search (Vijayakumar et al. 2016, "Diverse Beam Search", algorithm 1): groups that avoid one another's
words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.search.beam import BeamStrategy
from captioner.search.engine import Frontier


class DiverseStrategy:
    """Beam search in G groups of K / G hypotheses, one after the other at every step.

    A group's candidates lose ``penalty`` for each time that a group before it has just chosen the same word (the
    paper's Hamming diversity, its lambda). The penalty counts in that one choice alone: totals stay log-probabilities,
    so that captions of all groups are ranked alike and by what the model thinks of them. The first group is beam search
    with K / G. <end> is a word like any other. Two groups may end with the same caption.

    Args:
        beam_size: K.
        groups: G, which divides K.
        penalty: in nats.

    Raises:
        ValueError: ``groups`` does not divide ``beam_size``.
    """

    def __init__(self, beam_size: int, groups: int, penalty: float) -> None:
        if beam_size % groups:
            raise ValueError(f"{beam_size} hypotheses in {groups} groups")
        self.beam_size, self.groups, self.penalty = beam_size, groups, penalty
        self._group = BeamStrategy(beam_size // groups)

    def choose(self, logits: Tensor, offsets: Tensor, frontier: Frontier) -> tuple[Tensor, Tensor, Tensor]:
        """As ``Strategy`` says; the augmented totals fall in each group."""
        size, (images, width) = self._group.beam_size, frontier.shape
        picture, slot = frontier.numbers // width, frontier.numbers % width  # (R,) of each live hypothesis
        taken = frontier.numbers.new_zeros(images, 0)  # (J, n) words that groups before chose
        counted = logits.new_zeros(images, 0)  # (J, n), 1 where a slot was open for the word
        totals, parents = [], []
        for group in range(self.groups):
            first = 0 if frontier.step == 0 else group * size  # at first all groups continue the one empty hypothesis
            shape = (images, 1 if frontier.step == 0 else size)
            rows = ((slot >= first) & (slot < first + shape[1])).nonzero().squeeze(1)  # (R_g,)
            if len(rows):
                numbers = picture[rows] * shape[1] + slot[rows] - first
                own = logits[rows].scatter_add_(
                    1, taken[picture[rows]], -self.penalty * counted[picture[rows]]
                )  # (R_g, V), a copy
                own_frontier = Frontier(
                    numbers, shape, frontier.slots[:, group : group + 1], frontier.pictures, frontier.step
                )
                augmented, parent, word = self._group.choose(own, offsets[rows], own_frontier)  # (J, K / G)
                row = rows.new_zeros(math.prod(shape)).index_copy_(0, numbers, rows).view(shape).gather(1, parent)
                plain = (logits[row, word] + offsets[row]).masked_fill(augmented == -math.inf, -math.inf)
            else:
                plain = logits.new_full((images, size), -math.inf)
                parent = word = frontier.numbers.new_zeros(images, size)
            chosen = (torch.arange(size, device=plain.device) < frontier.slots[:, group : group + 1]) & (
                plain > -math.inf
            )
            taken, counted = torch.cat([taken, word], dim=1), torch.cat([counted, chosen.to(counted.dtype)], dim=1)
            totals.append(plain)
            parents.append(parent + first)
        return torch.cat(totals, dim=1), torch.cat(parents, dim=1), taken
