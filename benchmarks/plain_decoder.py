"""Show, Attend and Tell as someone who knows PyTorch would write it with speed in mind, in one short module.

Features are projected once, attention keys are computed once an image and shared by its captions, and the vocabulary
layer runs once over all unmasked tokens. Everything else is torch's own. It is a peer of ``benchmarks.step``: what the
project's decoder and training step add (other cells, attentions, norms, objectives) should cost nothing against it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LARGEST_NORM = 10.0  # of the gradient


class PlainDecoder(nn.Module):
    """An LSTM with soft attention.

    Args:
        vocabulary: V; words: D; channels: C; positions: P; width: E; hidden: H; attention: A.
    """

    def __init__(
        self,
        vocabulary: int,
        words: int,
        channels: int,
        positions: int,
        width: int,
        hidden: int,
        attention: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, words).requires_grad_(False)
        self.projection, self.norm = nn.Linear(channels, width), nn.LayerNorm(width)
        self.position = nn.Parameter(torch.randn(positions, width) * 0.1)
        self.key, self.query = nn.Linear(width, attention, bias=False), nn.Linear(hidden, attention)
        self.score, self.gate = nn.Linear(attention, 1, bias=False), nn.Linear(hidden, width)
        self.initial, self.cell = nn.Linear(width, 2 * hidden), nn.LSTMCell(words + width, hidden)
        self.output_context = nn.Linear(width, hidden, bias=False)
        self.output_word = nn.Linear(words, hidden, bias=False)
        self.vocabulary, self.dropout = nn.Linear(hidden, vocabulary), nn.Dropout(dropout)

    def forward(self, features: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Features (I, P, C), input tokens (I, K, T), mask (I, K, T) bool -> logits (M, V) where the mask is True."""
        images, captions, steps = tokens.shape
        values = self.dropout(self.norm(self.projection(features)) + self.position)  # (I, P, E)
        keys = self.key(values).unsqueeze(1)  # (I, 1, P, A)
        initial = torch.tanh(self.initial(values.mean(1))).repeat_interleave(captions, 0)
        h, c = initial.chunk(2, -1)  # (I * K, H)
        words = self.dropout(self.embedding(tokens)).flatten(0, 1)  # (I * K, T, D)
        hidden, contexts = [], []
        for step in range(steps):
            query = self.query(h).view(images, captions, 1, -1)
            weights = torch.softmax(self.score(torch.tanh(keys + query)).squeeze(-1), -1)  # (I, K, P)
            context = (weights @ values).flatten(0, 1) * torch.sigmoid(self.gate(h))  # (I * K, E)
            h, c = self.cell(torch.cat([words[:, step], context], -1), (h, c))
            hidden.append(h)
            contexts.append(context)
        output = torch.stack(hidden, 1) + self.output_context(torch.stack(contexts, 1)) + self.output_word(words)
        return self.vocabulary(self.dropout(output)[mask.flatten(0, 1)])


def plain_optimizer(decoder: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Fused Adam over what is trained."""
    parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=rate, fused=True)


def plain_step(
    decoder: PlainDecoder, optimizer: torch.optim.Optimizer, features: Tensor, tokens: Tensor, precision: str
) -> Tensor:
    """One training step on features (I, P, C) and tokens (I, K, T + 1), PAD = 0; returns the loss."""
    targets = tokens[..., 1:]
    mask = targets != 0
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(features.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = decoder(features.float(), tokens[..., :-1], mask)
    loss = F.cross_entropy(logits.float(), targets[mask])
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], _LARGEST_NORM)
    optimizer.step()
    return loss.detach()
