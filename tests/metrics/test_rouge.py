"""The bit-parallel longest common subsequence against the table, and ROUGE-L against pycocoevalcap's."""

from __future__ import annotations

import random

import pytest

from captioner.metrics.rouge import longest_common_subsequence, rouge_l


def _by_table(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for index, y in enumerate(b, 1):
            before, row[index] = row[index], before + 1 if x == y else max(row[index], row[index - 1])
    return row[-1]


@pytest.mark.parametrize("seed", range(20))
def test_length_is_that_of_the_table(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(50):
        a, b = ([draw.choice("abcde"[: 1 + seed % 5]) for _ in range(draw.randint(0, 90))] for _ in range(2))
        assert longest_common_subsequence(a, b) == _by_table(a, b) == longest_common_subsequence(b, a)


def test_rouge_l_is_pycocoevalcaps() -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    theirs, draw = Rouge(), random.Random(5)
    for _ in range(500):
        text, *references = (
            " ".join(draw.choices(["a", "dog", "runs", "on", "grass"], k=draw.randint(0, 9)))
            for _ in range(draw.randint(2, 6))
        )
        assert rouge_l(text, references) == (
            pytest.approx(theirs.calc_score([text], references), abs=1e-12) if text else 0
        )
