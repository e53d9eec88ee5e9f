"""Section ``vocab`` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.parameters.options import option
from captioner.parameters.registries import tokenizers


@dataclass(frozen=True)
class VocabParameters:
    """The decoder's vocabulary and its word vectors."""

    seed: int = option(1, "seed of the random vectors for words without a pre-trained one", low=0)
    tokenizer: str = option(
        "english",
        "how captions become words: english (Penn Treebank), words (of any language that puts spaces between them), "
        "characters (Chinese, Japanese, Thai); docs/languages.md",
        choices=tokenizers,
    )
    min_count: int = option(5, "words that occur fewer times in the training captions become <unk>", low=1)
    max_length: int = option(30, "longest training caption in tokens, without <start> and <end>", low=1, high=1000)
    vectors: str = option(
        "glove",
        "glove (6B: 50d from its package, else the official archive), none (all random), "
        "or the path of a GloVe text file or glove.6B.zip",
    )
    dimension: int = option(50, "size of a word vector; glove has 50, 100, 200, 300", low=1, high=4096)
