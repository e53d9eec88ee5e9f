"""The forward and backward pass of a training step on a GPU as one CUDA graph.

A step launches some 2,500 kernels of a few microseconds each, and the processor takes longer to launch one than the GPU
to run it. A graph is launched as a whole. It repeats exactly what was recorded, the same shapes at the same addresses:
hence the mould, and the tensors here that each batch is copied into.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.decoder.mould import Mould
from captioner.decoder.norm import BatchNorm
from captioner.device import record, to_device, warm_up
from captioner.parameters import TrainParameters
from captioner.training.batches import Batch, CaptionTable
from captioner.training.reinforce import Reinforce
from captioner.training.step import backward

_MOST_WASTE = 4  # one picture with very many captions would make every batch's block as wide as its own


class StepGraph:
    """Does the passes of ``training_step``.

    Args:
        decoder: on a GPU, in its place.
        parameters: how it learns.
        reinforce: what hard attention learns by; None with any other.

    Attributes:
        recorded: it can take the batches it was fitted to last; False where they differ too much to be worth it.
    """

    def __init__(
        self, decoder: CaptionDecoder, parameters: TrainParameters, reinforce: Reinforce | None = None
    ) -> None:
        self._decoder, self._parameters, self._reinforce = decoder, parameters, reinforce
        self._device = decoder.vocabulary.weight.device
        self._mould: Mould | None = None
        self._gradients: list[tuple[Tensor, Tensor]] = []  # parameter and gradient
        self.recorded = False

    @staticmethod
    def fits(decoder: CaptionDecoder) -> bool:
        """Whether a decoder can be trained so: on a GPU, and without a batch norm, which would count the pictures that
        fill up."""
        return decoder.vocabulary.weight.device.type == "cuda" and not isinstance(decoder.norm, BatchNorm)

    def fit(self, table: CaptionTable, batches: Sequence[Batch]) -> None:
        """Record the graph anew if batches of captions of ``table`` do not fit the one there is. The decoder must be in
        train mode."""
        if not batches:
            return
        mould = Mould.of(table.targets[batch.captions] for batch in batches)
        self.recorded = mould.waste <= _MOST_WASTE
        if not self.recorded:
            return
        if self._mould is not None:
            mould |= self._mould
        if mould != self._mould:
            self._mould = mould
            self._record(torch.from_numpy(table.tokens[batches[0].captions][:, :, : len(mould.steps) + 1]))

    def clear_gradients(self) -> None:
        """Give the parameters the gradients that the graph adds to, all zero."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        if self._gradients:  # none where this process has had no picture yet
            torch._foreach_zero_([gradient for _, gradient in self._gradients])

    def backward(
        self, features: Tensor, tokens: Tensor, inputs: Tensor | None, a_token: float, a_caption: float
    ) -> Tensor:
        """``step.backward`` of a batch.

        Args:
            features: (I, P, C) on the GPU.
            tokens: (I, K, T + 1) int64 on the CPU.
            inputs: (I, K, T) int64 on the GPU, the words that go in, where they are not ``tokens[..., :-1]``.
        """
        self._numbers.copy_(to_device(self._mould.pour(tokens), self._device))
        if inputs is not None:
            self._put_in(inputs)
        self._features[: len(features)].copy_(features)
        self._counts.copy_(to_device(np.array([a_token, a_caption], dtype=np.float32), self._device))
        self._graph.replay()
        return self._figures.clone()  # the next batch's are written over these

    def _put_in(self, inputs: Tensor) -> None:
        mould, packing = self._mould, self._mould.packing(self._numbers)
        table = inputs.new_zeros(mould.images, mould.captions, len(mould.steps))
        table[: inputs.shape[0], : inputs.shape[1], : inputs.shape[2]] = inputs
        packing.inputs.copy_(table.flatten(0, 1)[packing.caption, packing.step])

    def _record(self, tokens: Tensor) -> None:
        """Record the passes, on any batch that fits; they change no gradient and take nothing from the random
        generator."""
        config, device = self._decoder.config, self._device
        self._graph = self._figures = None  # give its memory back first
        self._numbers = to_device(self._mould.pour(tokens), device)
        self._features = torch.zeros(
            self._mould.images, config.positions, config.channels, dtype=torch.float16, device=device
        )
        self._counts = torch.ones(2, device=device)
        parameters = [parameter for parameter in self._decoder.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.grad = None
        generator = torch.cuda.default_generators[device.index]
        state = generator.get_state()
        warm_up(self._passes, device)
        used = [parameter for parameter in parameters if parameter.grad is not None]
        self._gradients = [(parameter, torch.zeros_like(parameter)) for parameter in used]
        self.clear_gradients()
        self._graph, self._figures = record(self._passes, device)
        generator.set_state(state)

    def _passes(self) -> Tensor:
        a_token, a_caption = self._counts.unbind()
        packing = self._mould.packing(self._numbers)
        return backward(self._decoder, self._features, packing, a_token, a_caption, self._parameters, self._reinforce)
