"""The soft-attention LSTM as textbooks and tutorials write it: one loop over steps that does everything for every
caption.

Features are repeated for every caption and not projected, attention keys and the vocabulary layer are computed at every
step, and every row runs to the longest caption of the batch. It is the yardstick of ``benchmarks.step``; nothing in the
program uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextbookDecoder(nn.Module):
    """Show, Attend and Tell (Xu et al. 2015) without any sharing.

    Args:
        vocabulary: V; embedding: D; channels: C; hidden: H; attention: A.
    """

    def __init__(self, vocabulary: int, embedding: int, channels: int, hidden: int, attention: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.embedding.weight.requires_grad_(False)
        self.initial_h, self.initial_c = nn.Linear(channels, hidden), nn.Linear(channels, hidden)
        self.key, self.query, self.score = (
            nn.Linear(channels, attention),
            nn.Linear(hidden, attention),
            nn.Linear(attention, 1),
        )
        self.gate = nn.Linear(hidden, channels)
        self.cell = nn.LSTMCell(embedding + channels, hidden)
        self.dropout = nn.Dropout(0.3)
        self.vocabulary = nn.Linear(hidden, vocabulary)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features (B, P, C), tokens (B, T + 1) -> logits (B, T, V)."""
        mean = features.mean(1)
        h, c = torch.tanh(self.initial_h(mean)), torch.tanh(self.initial_c(mean))
        words = self.embedding(tokens)
        logits = []
        for step in range(tokens.shape[1] - 1):
            units = torch.tanh(self.key(features) + self.query(h).unsqueeze(1))  # (B, P, A)
            weights = torch.softmax(self.score(units).squeeze(2), 1)  # (B, P)
            context = (features * weights.unsqueeze(2)).sum(1) * torch.sigmoid(self.gate(h))  # (B, C)
            h, c = self.cell(torch.cat([words[:, step], context], 1), (h, c))
            logits.append(self.vocabulary(self.dropout(h)))
        return torch.stack(logits, 1)


def textbook_step(
    decoder: TextbookDecoder, optimizer: torch.optim.Optimizer, features: Tensor, tokens: Tensor
) -> Tensor:
    """One training step on features (I, P, C) and tokens (I, K, T + 1), PAD = 0; returns the loss."""
    repeated = features.float().repeat_interleave(tokens.shape[1], 0)  # (I * K, P, C)
    rows = tokens.flatten(0, 1)
    logits = decoder(repeated, rows)
    loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
