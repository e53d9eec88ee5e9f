"""What the decoders over a feature grid share: word vectors, projected features, the vocabulary layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.decoder.config import DecoderConfig
from captioner.decoder.norm import build_norm
from captioner.decoder.positions import sinusoidal_positions
from captioner.decoder.protocol import Decoder


class GridDecoder(Decoder):
    """Words in, projected features and logits; a subclass has what lies between.

    A subclass calls ``build_vocabulary_layer`` after it has made its own layers.

    Args:
        config: its settings.
        embeddings: (V, D') float word vectors; None: random ones (to be loaded or trained).

    Raises:
        CaptionerError: an unknown name, or sizes that do not fit together.
        ValueError: ``embeddings`` has another shape than the settings say.
    """

    def __init__(self, config: DecoderConfig, embeddings: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.feature_size  # E
        self.embedding = nn.Embedding(config.vocabulary_size, config.vector_size)
        if embeddings is not None:
            if embeddings.shape != self.embedding.weight.shape:
                expected = tuple(self.embedding.weight.shape)
                raise ValueError(f"word vectors {tuple(embeddings.shape)}, settings {expected}")
            self.embedding.weight.data.copy_(embeddings)
        self.embedding.weight.requires_grad_(config.tune_embeddings)
        self.embedding_map = _map(config.vector_size, config.embedding_size)

        self.projection = nn.Linear(config.channels, width)
        self.norm = build_norm(config.norm, width)
        learned = config.position == "learned"
        self.position = nn.Parameter(torch.randn(config.positions, width) * 0.1) if learned else None
        if config.position == "sinusoidal":  # an impossible size is refused here, not at the first step
            sinusoidal_positions(
                config.rows, config.positions // config.rows, width, torch.device("cpu"), torch.float32
            )
        self.dropout = nn.Dropout(config.dropout)

    def build_vocabulary_layer(self) -> None:
        """The layer from H to V, with weights of its own or the word vectors'."""
        config, size = self.config, self.config.hidden_size
        self.output_map = _map(size, config.vector_size) if config.tie_weights else nn.Identity()
        self.vocabulary = None if config.tie_weights else nn.Linear(size, config.vocabulary_size)
        self.tied_bias = nn.Parameter(torch.zeros(config.vocabulary_size)) if config.tie_weights else None

    def projection_parameters(self) -> list[nn.Parameter]:
        """The parameters of the feature projection, which have a learning rate of their own."""
        position = [] if self.position is None else [self.position]
        return [*self.projection.parameters(), *self.norm.parameters(), *position]

    def project(self, features: Tensor) -> Tensor:
        """Features (I, P, C) of any float dtype -> (I, P, E), normalised and with their positions."""
        values = self.norm(self.projection(features.to(self.projection.weight.dtype)))
        if self.position is not None:
            values = values + self.position
        elif self.config.position == "sinusoidal":
            rows = self.config.rows
            values = values + sinusoidal_positions(
                rows, values.shape[1] // rows, values.shape[2], values.device, values.dtype
            )
        return self.dropout(values)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (...) int64 -> word vectors (..., D)."""
        return self.embedding_map(self.embedding(tokens))

    def logits(self, output: Tensor) -> Tensor:
        """What the layers give (..., H) -> (..., V)."""
        if self.vocabulary is None:  # tied weights (Press and Wolf 2017)
            return F.linear(self.output_map(output), self.embedding.weight, self.tied_bias)
        return self.vocabulary(output)


def _map(size: int, wanted: int) -> nn.Module:
    """A learned map where two sizes differ."""
    return nn.Identity() if size == wanted else nn.Linear(size, wanted, bias=False)
