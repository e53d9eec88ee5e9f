"""What a decoder keeps of a picture and of its hypotheses, and what teacher forcing returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Computed once a picture and shared by all its hypotheses.

    Attributes:
        values: (I, P, E) projected features.
        keys: (I, P, A) attention keys; A = 0 without attention.
        mean: (I, E) mean of the values.
    """

    values: Tensor
    keys: Tensor
    mean: Tensor

    def select(self, images: Tensor) -> Memory:
        """The pictures ``images`` (J,) int64, in that order."""
        return Memory(*(tensor.index_select(0, images) for tensor in (self.values, self.keys, self.mean)))

    def first(self, images: int) -> Memory:
        """The first pictures, as views."""
        if images == len(self.values):
            return self
        return Memory(self.values[:images], self.keys[:images], self.mean[:images])


@dataclass(frozen=True)
class State:
    """The recurrent state of K hypotheses of I pictures: each layer's tensors, (I, K, H) each, h first; the first
    layer's come first."""

    tensors: tuple[Tensor, ...]

    def select(self, index: Tensor) -> State:
        """For each picture the hypotheses ``index`` (I, K') int64; repeats and K' != K are allowed."""
        return State(
            tuple(tensor.gather(1, index.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])) for tensor in self.tensors)
        )

    def images(self, images: Tensor) -> State:
        """The pictures ``images`` (J,) int64, in that order."""
        return State(tuple(tensor.index_select(0, images) for tensor in self.tensors))


@dataclass(frozen=True)
class TeacherForced:
    """Predictions for the M real target tokens of a batch (words and END, no padding).

    Attributes:
        logits: (M, V).
        targets: (M,) int64.
        weights: (M, P) attention weights.
        caption: (M,) int64, image * K + k of each token.
        step: (M,) int64, its step, 0 for the first word.
        shape: (I, K, T) of the captions, T without START.
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor
    caption: Tensor
    step: Tensor
    shape: tuple[int, int, int]

    @property
    def attention(self) -> Tensor:
        """(I, K, T, P) attention weights in the captions' order, zero for padding."""
        images, captions, length = self.shape
        full = self.weights.new_zeros(images * captions, length, self.weights.shape[-1])
        full[self.caption, self.step] = self.weights
        return full.view(images, captions, length, -1)
