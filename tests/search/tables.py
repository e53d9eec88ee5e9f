"""A decoder made of hand-written probability tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.vocabulary.vocabulary import END, PAD

A, B, C, D = 4, 5, 6, 7  # tokens after PAD, START, END and UNK

Table = Callable[[int, tuple[int, ...]], Sequence[float] | Tensor]
"""(table index, prefix without START) -> probabilities of all tokens (V,)."""


@dataclass(frozen=True)
class TableMemory:
    indices: Tensor  # (I,) which table each image has

    def select(self, images: Tensor) -> TableMemory:
        return TableMemory(self.indices[images])


@dataclass(frozen=True)
class TableState:
    prefixes: Tensor  # (I, K, t), START included

    def reorder(self, parents: Tensor) -> TableState:
        return TableState(self.prefixes.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.prefixes.shape[-1])))

    def select(self, images: Tensor) -> TableState:
        return TableState(self.prefixes[images])


class TableDecoder(torch.nn.Module):
    """A decoder whose probabilities come from ``table``.

    The attention weights of a step are (table index, length of the prefix, last token), so that a test can see where
    they came from.
    """

    def __init__(self, table: Table, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.table, self.dtype = table, dtype
        self.shapes: list[tuple[int, int]] = []  # images and hypotheses in each step

    @property
    def batches(self) -> list[int]:
        """Images in each step."""
        return [images for images, _ in self.shapes]

    def encode(self, features: Tensor) -> TableMemory:
        return TableMemory(features[:, 0, 0].long())

    def initial_state(self, memory: TableMemory, beams: int) -> TableState:
        return TableState(torch.zeros(len(memory.indices), beams, 0, dtype=torch.int64))

    def step(self, tokens: Tensor, state: TableState, memory: TableMemory) -> tuple[Tensor, TableState, Tensor]:
        assert tokens.shape == state.prefixes.shape[:2] and len(tokens) == len(memory.indices)
        self.shapes.append((tokens.shape[0], tokens.shape[1]))
        prefixes = torch.cat([state.prefixes, tokens.unsqueeze(-1)], dim=-1)
        logits = [
            torch.stack([self._logits(index, tuple(row[1:])) for row in rows])
            for index, rows in zip(memory.indices.tolist(), prefixes.tolist(), strict=True)
        ]
        return torch.stack(logits), TableState(prefixes), self._attention(memory, prefixes)

    def forward(self, memory: TableMemory, tokens: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = [
            self._logits(index, tuple(row[1 : length + 1]))
            for index, rows in zip(memory.indices.tolist(), tokens.tolist(), strict=True)
            for row in rows
            for length, token in enumerate(row)
            if token != PAD
        ]
        steps = [self._attention(memory, tokens[..., : length + 1]) for length in range(tokens.shape[-1])]
        return torch.stack(logits), torch.stack(steps, dim=2)

    def _attention(self, memory: TableMemory, prefixes: Tensor) -> Tensor:
        length = torch.full_like(prefixes[..., 0], prefixes.shape[-1] - 1)
        index = memory.indices.unsqueeze(1).expand_as(length)
        return torch.stack([index, length, prefixes[..., -1]], dim=-1).float()  # (I, K, 3)

    def _logits(self, index: int, prefix: tuple[int, ...]) -> Tensor:
        return torch.as_tensor(self._probabilities(index, prefix), dtype=self.dtype).log()

    def _probabilities(self, index: int, prefix: tuple[int, ...]) -> Sequence[float] | Tensor:
        if END not in prefix:
            return self.table(index, prefix)
        tempting = torch.zeros(len(self.table(index, ())))  # if a finished hypothesis went on, it would surely win
        tempting[A if len(prefix) < prefix.index(END) + 2 else END] = 1.0
        return tempting


def images(*indices: int) -> Tensor:
    """Features (I, 1, 1) that name the tables."""
    return torch.tensor(indices, dtype=torch.float64).view(-1, 1, 1)


def probs(
    end: float = 0.0,
    a: float = 0.0,
    b: float = 0.0,
    c: float = 0.0,
    unk: float = 0.0,
    pad: float = 0.0,
    start: float = 0.0,
) -> list[float]:
    """One row of a table, in the order of ids: PAD, START, END, UNK, A, B, C."""
    return [pad, start, end, unk, a, b, c]


def random_table(seed: int, vocabulary: int, end: float = 1.0) -> Callable[[int, tuple[int, ...]], Tensor]:
    """Probabilities drawn from table index and prefix alone; END's is multiplied by ``end``."""

    def table(index: int, prefix: tuple[int, ...]) -> Tensor:
        code = seed
        for part in (index, *prefix):
            code = (code * 1_000_003 + part + 1) % (2**31 - 1)
        generator = torch.Generator().manual_seed(code)
        probabilities = torch.randn(vocabulary, generator=generator, dtype=torch.float64).mul(1.5).exp()
        probabilities[END] *= end
        return probabilities / probabilities.sum()

    return table
