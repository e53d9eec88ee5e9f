"""A decoder made of hand-written probability tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.vocabulary.vocabulary import END

A, B, C, D = 4, 5, 6, 7  # words after <pad> <start> <end> <unk>


@dataclass(frozen=True)
class TableMemory:
    numbers: Tensor  # (I,) which table each picture has

    def select(self, images: Tensor) -> TableMemory:
        return TableMemory(self.numbers[images])


@dataclass(frozen=True)
class TableState:
    prefixes: Tensor  # (I, K, t), <start> included

    def select(self, index: Tensor) -> TableState:
        return TableState(self.prefixes.gather(1, index.unsqueeze(-1).expand(-1, -1, self.prefixes.shape[-1])))

    def images(self, images: Tensor) -> TableState:
        return TableState(self.prefixes[images])


class TableDecoder(torch.nn.Module):
    """``table(picture number, prefix without <start>)`` gives the probabilities of all words (V,).

    Attention of a step is (number, length of the prefix, last word), so that a test can see where it came from.
    """

    def __init__(
        self, table: Callable[[int, tuple[int, ...]], Sequence[float] | Tensor], dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.table, self.dtype = table, dtype
        self.batches: list[int] = []  # pictures in each step

    def encode(self, features: Tensor) -> TableMemory:
        return TableMemory(features[:, 0, 0].long())

    def start(self, memory: TableMemory, hypotheses: int) -> TableState:
        return TableState(torch.zeros(len(memory.numbers), hypotheses, 0, dtype=torch.int64))

    def step(
        self, words: Tensor, state: TableState, memory: TableMemory, live: Tensor | None
    ) -> tuple[Tensor, TableState, Tensor]:
        assert words.shape == state.prefixes.shape[:2] and len(words) == len(memory.numbers)
        self.batches.append(len(words))
        prefixes = torch.cat([state.prefixes, words.unsqueeze(-1)], dim=-1)
        logits, weights = [], []
        for number, rows in zip(memory.numbers.tolist(), prefixes.tolist(), strict=True):
            tables = [torch.as_tensor(self._probabilities(number, tuple(row[1:])), dtype=self.dtype) for row in rows]
            logits.append(torch.stack(tables).log())
            weights.append([[float(number), float(len(row) - 1), float(row[-1])] for row in rows])
        assert live is None or not (prefixes.flatten(0, 1)[live] == END).any()  # nothing is computed for what has ended
        together = torch.cat(logits)
        return together if live is None else together[live], TableState(prefixes), torch.tensor(weights)

    def _probabilities(self, number: int, prefix: tuple[int, ...]) -> Sequence[float] | Tensor:
        if END not in prefix:
            return self.table(number, prefix)
        tempting = torch.zeros(
            len(self.table(number, ()))
        )  # were a finished hypothesis to go on, it would win for sure
        tempting[A if len(prefix) < prefix.index(END) + 2 else END] = 1.0
        return tempting


def pictures(*numbers: int) -> Tensor:
    """Features (I, 1, 1) that name the tables."""
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)


def words(
    end: float = 0.0,
    a: float = 0.0,
    b: float = 0.0,
    c: float = 0.0,
    unk: float = 0.0,
    pad: float = 0.0,
    start: float = 0.0,
) -> list[float]:
    """One row of a table: <pad> <start> <end> <unk> a b c."""
    return [pad, start, end, unk, a, b, c]


def random_table(seed: int, vocabulary: int, end: float = 1.0) -> Callable[[int, tuple[int, ...]], Tensor]:
    """Probabilities drawn from picture and prefix alone; ``end`` multiplies <end>'s."""

    def table(number: int, prefix: tuple[int, ...]) -> Tensor:
        code = seed
        for part in (number, *prefix):
            code = (code * 1_000_003 + part + 1) % (2**31 - 1)
        generator = torch.Generator().manual_seed(code)
        probabilities = torch.randn(vocabulary, generator=generator, dtype=torch.float64).mul(1.5).exp()
        probabilities[END] *= end
        return probabilities / probabilities.sum()

    return table
