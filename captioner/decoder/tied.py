"""A vocabulary layer without a weight of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TiedVocabulary(nn.Module):
    """Logits are products with the word vectors themselves, plus a bias (Press and Wolf 2017, "Using the output
    embedding to improve language models").

    The weight is the embedding's: trained where the word vectors are, frozen where they are. It is no parameter of this
    module, so it is trained, stored and loaded once, as the embedding's.

    Args:
        embedding: V word vectors of size D.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._shared = (embedding,)  # in a tuple, which torch does not take for a part of this module
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    @property
    def weight(self) -> nn.Parameter:
        """(V, D)."""
        return self._shared[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> logits (M, V)."""
        return F.linear(x, self.weight, self.bias)
