"""A plain soft-attention LSTM: what a practitioner would write with standard modules and no trick.

Features are projected and attention keys computed once an image, the captions of an image share them, and the
vocabulary layer runs once over the tokens that are not padding. It is a yardstick of ``benchmarks.step``; nothing in
the program uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainDecoder(nn.Module):
    """Show, Attend and Tell (Xu et al. 2015). V words, D, C channels, E, H, A, P positions."""

    def __init__(self, vocabulary: int, embedding: int, channels: int, hidden: int, width: int, positions: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding).requires_grad_(False)
        self.projection, self.norm = nn.Linear(channels, width), nn.LayerNorm(width)
        self.position = nn.Parameter(torch.randn(positions, width) * 0.1)
        self.key, self.query = nn.Linear(width, width, bias=False), nn.Linear(hidden, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.gate, self.initial = nn.Linear(hidden, width), nn.Linear(width, 2 * hidden)
        self.cell = nn.LSTMCell(embedding + width, hidden)
        self.output_context = nn.Linear(width, hidden, bias=False)
        self.output_word = nn.Linear(embedding, hidden, bias=False)
        self.vocabulary, self.dropout = nn.Linear(hidden, vocabulary), nn.Dropout(0.1)

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features (I, P, C), tokens (I, K, T + 1) -> logits (M, V) and targets (M,) of the M tokens to predict."""
        images, captions, _ = tokens.shape
        values = self.dropout(self.norm(self.projection(features)) + self.position)  # (I, P, E)
        keys = self.key(values).unsqueeze(1)
        h, c = torch.tanh(self.initial(values.mean(1))).repeat_interleave(captions, 0).chunk(2, 1)  # (I * K, H)
        words = self.dropout(self.embedding(tokens[..., :-1])).flatten(0, 1)  # (I * K, T, D)
        hidden, contexts = [], []
        for word in words.unbind(1):
            query = self.query(h).view(images, captions, 1, -1)
            weights = torch.softmax(self.score(torch.tanh(keys + query)).squeeze(-1), -1)  # (I, K, P)
            context = (weights @ values).flatten(0, 1) * torch.sigmoid(self.gate(h))
            h, c = self.cell(torch.cat([word, context], 1), (h, c))
            hidden.append(h)
            contexts.append(context)
        output = torch.stack(hidden, 1) + self.output_context(torch.stack(contexts, 1)) + self.output_word(words)
        targets = tokens[..., 1:].flatten(0, 1)
        return self.vocabulary(self.dropout(output[targets != 0])), targets[targets != 0]


def plain_step(
    decoder: PlainDecoder, optimizer: torch.optim.Optimizer, features: Tensor, tokens: Tensor, bf16: bool
) -> Tensor:
    """One training step; returns the loss."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(features.device.type, torch.bfloat16, enabled=bf16):
        logits, targets = decoder(features.float(), tokens)
        loss = F.cross_entropy(logits, targets)
    loss.backward()
    optimizer.step()
    return loss.detach()
