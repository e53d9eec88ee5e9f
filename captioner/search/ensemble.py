"""Several decoders as one: every word's probability is the mean of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from captioner.decoder import TeacherForced
from captioner.search.protocol import Memory, State


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

    def select(self, index: Tensor) -> EnsembleState:
        return EnsembleState(tuple(state.select(index) for state in self.members))

    def images(self, images: Tensor) -> EnsembleState:
        return EnsembleState(tuple(state.images(images) for state in self.members))


class Ensemble(nn.Module):
    """A decoder whose probability of a word is the mean of its members' probabilities after the same words.

    It takes a step as any decoder does, so every search works on it. All members see the same features; attention is
    the mean of theirs.

    Args:
        members: decoders in eval mode that know the same words in the same order.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval()

    def encode(self, features: Tensor) -> EnsembleMemory:
        return EnsembleMemory(tuple(member.encode(features) for member in self.members))

    def start(self, memory: EnsembleMemory, hypotheses: int) -> EnsembleState:
        return EnsembleState(tuple(member.start(own, hypotheses) for member, own in zip(self.members, memory.members)))

    def step(
        self, words: Tensor, state: EnsembleState, memory: EnsembleMemory, live: Tensor | None = None
    ) -> tuple[Tensor, EnsembleState, Tensor | None]:
        """See ``StepDecoder.step``. The logits are the logarithms of the mean probabilities."""
        parts = zip(self.members, state.members, memory.members)
        logits, states, weights = zip(*(member.step(words, own, its, live) for member, own, its in parts))
        attention = None if any(part is None for part in weights) else torch.stack(weights).mean(0)
        return _log_mean(logits), EnsembleState(states), attention

    def forward(self, features: Tensor, tokens: Tensor) -> TeacherForced:
        """Teacher forcing; see ``CaptionDecoder.forward``."""
        outputs = [member(features, tokens) for member in self.members]
        weights = torch.stack([output.weights for output in outputs]).mean(0)
        return replace(outputs[0], logits=_log_mean([output.logits for output in outputs]), weights=weights)


def _log_mean(logits: Sequence[Tensor]) -> Tensor:
    """Logits (R, V) of each member -> the logarithm of the mean probability, (R, V)."""
    wide = (part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in logits)
    return torch.stack([part.log_softmax(-1) for part in wide]).logsumexp(0) - math.log(len(logits))
