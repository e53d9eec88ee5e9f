"""The decoder protocol. I images, K hypotheses of each, V tokens, P grid positions."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Memory(Protocol):
    """What is computed once an image and shared by its hypotheses."""

    def select(self, images: Tensor) -> Memory:
        """The memory of the images with indices ``images`` (J,) int64, in that order."""


class State(Protocol):
    """The recurrent state of K hypotheses of I images."""

    def reorder(self, parents: Tensor) -> State:
        """For each image the hypotheses ``parents`` (I, K') int64 to go on with; repeats and K' != K are allowed."""

    def select(self, images: Tensor) -> State:
        """The state of the images with indices ``images`` (J,) int64, in that order."""


class Decoder(Protocol):
    """A caption decoder that search runs step by step."""

    def encode(self, features: Tensor) -> Memory:
        """Features (I, P, C) -> memory."""

    def initial_state(self, memory: Memory, beams: int) -> State:
        """The state before START, for K = ``beams`` hypotheses of each image."""

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State, Tensor]:
        """Last tokens (I, K) int64 -> logits (I, K, V), the next state, attention weights (I, K, P).

        Later steps must not overwrite the returned tensors. The caller may write into the logits.
        """

    def __call__(self, memory: Memory, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing.

        Args:
            tokens: (I, K, T) int64 inputs: START, words, PAD.

        Returns:
            Logits (M, V) of the M tokens that are not PAD, in row-major order (image, caption, step); attention weights
            (I, K, T, P).
        """
