"""Diverse beam search (Vijayakumar et al. 2016, "Diverse Beam Search", algorithm 1): groups that avoid each other's
words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.search.beam import BeamStrategy
from captioner.search.engine import Frontier


class DiverseStrategy:
    """Beam search in G groups of K / G hypotheses, one group after the other at every step.

    A candidate of a group loses ``penalty`` for each time that an earlier group has chosen the same token at this step
    (the paper's Hamming diversity, its lambda). The penalty affects that choice alone: totals stay log-probabilities of
    the model, so captions of all groups are ranked alike. The first group is beam search with K / G. END is a token
    like any other. Two groups may end with the same caption.

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
        """See ``Strategy``. The penalised totals fall in each group."""
        size, (images, _, vocabulary) = self._group.beam_size, logits.shape
        ranks = torch.arange(size, device=logits.device)
        taken = torch.zeros(images, 0, dtype=torch.int64, device=logits.device)  # (J, n) tokens of earlier groups
        penalties = logits.new_zeros(images, 0)  # (J, n), 0 where the token had no open slot
        totals, parents = [], []
        for group in range(self.groups):
            # at step 0 all groups continue the one empty hypothesis
            first = 0 if frontier.step == 0 else group * size
            own_logits, own_offsets = logits[:, first : first + size], offsets[:, first : first + size]
            slots = frontier.slots[:, group : group + 1]
            width = own_logits.shape[1]
            penalised = own_logits.scatter_add(
                2, taken.unsqueeze(1).expand(-1, width, -1), penalties.unsqueeze(1).expand(-1, width, -1)
            )  # a copy
            augmented, parent, token = self._group.choose(
                penalised, own_offsets, Frontier(slots, frontier.images, frontier.step)
            )  # (J, K / G)
            plain = own_logits.flatten(1).gather(1, parent * vocabulary + token) + own_offsets.gather(1, parent)
            plain = plain.masked_fill(augmented == -math.inf, -math.inf)
            chosen = (ranks < slots) & (plain > -math.inf)
            taken = torch.cat([taken, token], dim=1)
            penalties = torch.cat([penalties, -self.penalty * chosen.to(penalties.dtype)], dim=1)
            totals.append(plain)
            parents.append(parent + first)
        return torch.cat(totals, dim=1), torch.cat(parents, dim=1), taken
