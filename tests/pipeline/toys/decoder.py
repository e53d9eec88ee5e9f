"""A toy decoder: the next word depends on the image's mean feature and on the previous word alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioner.decoder.config import DecoderConfig
from captioner.decoder.protocol import Decoder, unmasked


@dataclass(frozen=True)
class ToyMemory:
    """The mean feature (I, C) of each image, and its weights (I, P): the same on all positions."""

    mean: Tensor
    weights: Tensor

    def select(self, images: Tensor) -> ToyMemory:
        """See ``Memory``."""
        return ToyMemory(self.mean.index_select(0, images), self.weights.index_select(0, images))


@dataclass(frozen=True)
class ToyState:
    """Nothing to remember: the previous word is an input of ``step``."""

    def reorder(self, parents: Tensor) -> ToyState:
        """See ``State``."""
        return self

    def select(self, images: Tensor) -> ToyState:
        """See ``State``."""
        return self


class ToyDecoder(Decoder):
    """logits(t) = W [mean feature, y(t)] + b."""

    def __init__(self, config: DecoderConfig, embeddings: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.vector_size)
        if embeddings is not None:
            self.embedding.weight.data.copy_(embeddings)
        self.embedding.weight.requires_grad_(config.tune_embeddings)
        self.output = nn.Linear(config.channels + config.vector_size, config.vocabulary_size)

    def projection_parameters(self) -> list[nn.Parameter]:
        """None: features are not projected."""
        return []

    def encode(self, features: Tensor) -> ToyMemory:
        """Features (I, P, C) -> memory."""
        mean = features.to(self.output.weight.dtype).mean(1)
        return ToyMemory(mean, mean.new_full(features.shape[:2], 1 / features.shape[1]))

    def initial_state(self, memory: ToyMemory, beams: int) -> ToyState:
        """See ``Decoder``."""
        return ToyState()

    def step(self, tokens: Tensor, state: ToyState, memory: ToyMemory) -> tuple[Tensor, ToyState, Tensor]:
        """Tokens (I, K) -> logits (I, K, V), state, attention (I, K, P)."""
        logits, attention = self._predict(tokens.unsqueeze(2), memory)
        return logits.squeeze(2), state, attention.squeeze(2)

    def forward(self, memory: ToyMemory, tokens: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (I, K, T) -> logits (M, V) of the positions ``index`` (M,); attention (I, K, T, P)."""
        logits, attention = self._predict(tokens, memory)
        return logits.flatten(0, 2)[unmasked(tokens) if index is None else index], attention

    def _predict(self, tokens: Tensor, memory: ToyMemory) -> tuple[Tensor, Tensor]:
        """Tokens (I, K, T) -> logits (I, K, T, V), attention (I, K, T, P)."""
        mean = memory.mean[:, None, None].expand(*tokens.shape, -1)
        logits = self.output(torch.cat([mean, self.embedding(tokens)], -1))
        return logits, memory.weights[:, None, None].expand(*tokens.shape, -1)
