"""Several decoders as one: the probability of every token is the mean of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from captioner.decoder.protocol import Decoder, Memory, State


@dataclass(frozen=True)
class EnsembleMemory:
    """One memory a member."""

    members: tuple[Memory, ...]

    def select(self, images: Tensor) -> EnsembleMemory:
        return EnsembleMemory(tuple(memory.select(images) for memory in self.members))


@dataclass(frozen=True)
class EnsembleState:
    """One state a member."""

    members: tuple[State, ...]

    def reorder(self, parents: Tensor) -> EnsembleState:
        return EnsembleState(tuple(state.reorder(parents) for state in self.members))

    def select(self, images: Tensor) -> EnsembleState:
        return EnsembleState(tuple(state.select(images) for state in self.members))


class Ensemble(Decoder):
    """A decoder whose probability of a token is the mean of its members' probabilities after the same tokens.

    It has the methods of ``protocol.Decoder``, so every search works on it. All members see the same features. Its
    attention weights are the mean of theirs.

    Args:
        members: decoders in eval mode with the same vocabulary.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        limits = [limit for member in members if (limit := getattr(member, "longest", None)) is not None]
        self.longest = min(limits, default=None)
        self.eval()

    def encode(self, features: Tensor) -> EnsembleMemory:
        return EnsembleMemory(tuple(decoder.encode(features) for decoder in self._decoders()))

    def initial_state(self, memory: EnsembleMemory, beams: int) -> EnsembleState:
        parts = zip(self._decoders(), memory.members, strict=True)
        return EnsembleState(tuple(decoder.initial_state(own, beams) for decoder, own in parts))

    def step(
        self, tokens: Tensor, state: EnsembleState, memory: EnsembleMemory
    ) -> tuple[Tensor, EnsembleState, Tensor]:
        """See ``protocol.Decoder``. The logits are the logarithms of the mean probabilities."""
        parts = zip(self._decoders(), state.members, memory.members, strict=True)
        logits, states, weights = zip(*(decoder.step(tokens, own, its) for decoder, own, its in parts), strict=True)
        return _log_mean(logits), EnsembleState(states), torch.stack(weights).mean(0)

    def forward(self, memory: EnsembleMemory, tokens: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Teacher forcing; see ``protocol.Decoder``."""
        parts = zip(self._decoders(), memory.members, strict=True)
        logits, weights = zip(*(decoder(own, tokens, index) for decoder, own in parts), strict=True)
        return _log_mean(logits), torch.stack(weights).mean(0)

    def _decoders(self) -> list[Decoder]:
        return cast("list[Decoder]", list(self.members))


def _log_mean(logits: Sequence[Tensor]) -> Tensor:
    """Logits (..., V) of each member -> the logarithm of the mean probability, (..., V)."""
    wide = (part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in logits)
    return torch.stack([part.log_softmax(-1) for part in wide]).logsumexp(0) - math.log(len(logits))
