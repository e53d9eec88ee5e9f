"""What search, training and captioning ask of a caption decoder, and nothing else.

Shapes: I images, K captions or beams of each, T tokens of a caption, P grid positions, V words.

    memory = decoder.encode(features)                              once an image
    state = decoder.initial_state(memory, beams)                   before START
    logits, state, attention = decoder.step(tokens, state, memory) one token further
    logits, attention = decoder(memory, tokens)                    all tokens at once (teacher forcing)

``captioner.decoder.registry`` has the decoders by name; a new one is one file with such a class and a row there.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from captioner.decoder.config import DecoderConfig

M = TypeVar("M", bound="Memory")
S = TypeVar("S", bound="State")


class Memory(Protocol):
    """What is computed once an image and shared by all its captions."""

    def select(self: M, images: Tensor) -> M:
        """The images ``images`` (J,) int64, in that order."""


class State(Protocol):
    """What a decoder remembers of the tokens so far, of K beams of I images."""

    def reorder(self: S, parents: Tensor) -> S:
        """For each image the beams ``parents`` (I, K') int64; repeats and K' != K are allowed."""

    def select(self: S, images: Tensor) -> S:
        """The images ``images`` (J,) int64, in that order."""


class Decoder(nn.Module):
    """Base class of the decoders; search needs ``encode``, ``initial_state`` and ``step`` alone.

    Attributes:
        config: its settings.
        longest: words of the longest caption that it can give; None: no limit.
    """

    config: DecoderConfig
    longest: int | None = None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def projection_parameters(self) -> list[nn.Parameter]:
        """The parameters of the feature projection, which have a learning rate of their own."""
        raise NotImplementedError

    def encode(self, features: Tensor) -> Any:
        """Features (I, P, C) of any float dtype -> memory."""
        raise NotImplementedError

    def initial_state(self, memory: Any, beams: int) -> Any:
        """The state before START, the same for all K = ``beams`` of an image."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any, memory: Any) -> tuple[Tensor, Any, Tensor]:
        """One token further.

        Args:
            tokens: (I, K) int64, the last token of each beam.

        Returns:
            Logits (I, K, V), which the caller may overwrite; the next state; attention (I, K, P). The next step does
            not overwrite them.
        """
        raise NotImplementedError

    def forward(self, memory: Any, tokens: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Teacher forcing (Williams and Zipser 1989): predict every token from the given ones before it.

        Args:
            tokens: (I, K, T) int64 inputs: START, the words, then PAD.
            index: (M,) int64, the positions in the flattened (I * K * T) whose logits are wanted; None: those of the
                tokens that are not PAD, in order (finding them makes the processor wait for a GPU).

        Returns:
            Logits (M, V); attention (I, K, T, P). Both may be anything where there is PAD.
        """
        raise NotImplementedError


def unmasked(tokens: Tensor) -> Tensor:
    """The positions of the tokens (I, K, T) that are not PAD, in the flattened tensor: (M,) int64."""
    return tokens.flatten().nonzero().squeeze(1)  # PAD is 0
