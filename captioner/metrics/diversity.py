"""What captions are like, whatever they are captions of: how many different words, how many that training did not have,
how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from captioner.vocabulary.tokenizers import ENGLISH, Tokenizer

DIVERSITY = {  # name -> title
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "words_used": "words used",
    "vocabulary_used": "vocabulary used",
    "novel": "novel captions",
    "caption_length": "mean length",
}


@dataclass(frozen=True)
class TrainingCaptions:
    """The training captions' tokens, joined with spaces, and the tokenizer that made them."""

    texts: frozenset[str]
    tokenizer: Tokenizer = ENGLISH

    @classmethod
    def of(cls, captions: Iterable[str], tokenizer: Tokenizer = ENGLISH) -> TrainingCaptions:
        """Of captions as written."""
        return cls(frozenset(" ".join(tokenizer.tokenize(caption)) for caption in captions), tokenizer)


def diversity(captions: Sequence[str], training: TrainingCaptions, vocabulary_size: int) -> dict[str, float]:
    """Metrics of generated captions, by the names of ``DIVERSITY``. One that cannot be computed is 0.

    * ``distinct_1``, ``distinct_2``: different words, different pairs of neighbours, each as a share of all there are
      in the captions (Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models"). They
      fall with the number of captions, so they are comparable on the same images only.
    * ``words_used``: different words; ``vocabulary_used``: as a share of the vocabulary's.
    * ``novel``: share of captions that are no training caption, word for word.
    * ``caption_length``: mean words.

    Args:
        captions: as written; tokenized as the training captions are.
        training: what the model was trained on.
        vocabulary_size: words that the model can say, special ones apart.
    """
    tokens = [training.tokenizer.tokenize(caption) for caption in captions]
    words = [word for caption in tokens for word in caption]
    pairs = [pair for caption in tokens for pair in zip(caption, caption[1:])]
    novel = sum(" ".join(caption) not in training.texts for caption in tokens)
    used = len(set(words))
    return {
        "distinct_1": _share(used, len(words)),
        "distinct_2": _share(len(set(pairs)), len(pairs)),
        "words_used": used,
        "vocabulary_used": _share(used, vocabulary_size),
        "novel": _share(novel, len(tokens)),
        "caption_length": _share(len(words), len(tokens)),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
