"""What search asks of a decoder. I pictures, K hypotheses of each, V words, P grid positions."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Memory(Protocol):
    """What is computed once a picture."""

    def select(self, images: Tensor) -> Memory:
        """The pictures ``images`` (J,) int64, in that order."""


class State(Protocol):
    """The recurrent state of K hypotheses of I pictures."""

    def select(self, index: Tensor) -> State:
        """For each picture the hypotheses ``index`` (I, K') int64; repeats and K' != K are allowed."""

    def images(self, images: Tensor) -> State:
        """The pictures ``images`` (J,) int64."""


class StepDecoder(Protocol):
    """A decoder that goes on by one word."""

    def encode(self, features: Tensor) -> Memory:
        """Features (I, P, C) to memory."""

    def start(self, memory: Memory, hypotheses: int) -> State:
        """The state before <start>, for K = ``hypotheses`` of each picture."""

    def step(
        self, words: Tensor, state: State, memory: Memory, live: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        """Words (I, K) int64 -> logits (R, V), the next state, attention weights (I, K, P) or None.

        Only the hypotheses ``live`` (R,) int64, numbered image * K + k and rising, go on (None: all, R = I * K); nobody
        reads what the state and the weights say of the others. The logits are a fresh tensor: search writes into it.
        """
