"""Sampling: captions drawn from the model's distribution, tempered and cut off, the same ones whatever else is in the
batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captioner.search.beam import spread
from captioner.search.engine import Frontier


class SamplingStrategy:
    """S captions of each picture, drawn independently word by word.

    A word is drawn from the softmax of the logits that the constraints leave, divided by ``temperature``; of its words
    the ``top_k`` likeliest are kept (Fan et al. 2018), then of these the fewest whose probabilities reach ``top_p``
    (nucleus sampling, Holtzman et al. 2020), and probabilities are scaled up to a sum of 1. A hypothesis'
    log-probability is the model's own, without all that, so that captions are comparable with those of beam search; the
    best of the S samples is the one that scores best.

    The random numbers of a sample come from a generator of its own (NumPy's, seeded by ``seed``, the picture's number
    and the sample's), one a word: a picture's captions depend neither on its batch nor on how many samples are drawn,
    and more samples begin with the same ones.

    Args:
        samples: S.
        pictures: the numbers of the batch's pictures, their ids for instance.
        max_length: words of the longest caption.
        seed: of all draws; not negative.
        temperature: below 1 sharper, above 1 flatter than the model.
        top_k: 0: all words.
        top_p: 1: all words; the likeliest word is always kept.
    """

    def __init__(
        self,
        samples: int,
        pictures: Sequence[int],
        max_length: int,
        seed: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        self.beam_size = self.groups = samples  # every sample is a group of its own: it goes on until it ends
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._noise = torch.from_numpy(random_numbers(seed, pictures, samples, max_length + 1))

    def choose(self, logits: Tensor, offsets: Tensor, frontier: Frontier) -> tuple[Tensor, Tensor, Tensor]:
        """As ``Strategy`` says: one continuation of each sample."""
        images, width = frontier.shape
        self._noise = self._noise.to(logits.device)
        at = self._noise[frontier.pictures, :, frontier.step]  # (J, S)
        at = (
            at if frontier.step == 0 else at.reshape(-1, 1)
        )  # at first all samples of a picture continue the one empty hypothesis
        words = self._draw(logits, at[frontier.numbers])  # (R, S) at first, then (R, 1)
        totals = spread(logits.gather(1, words) + offsets.unsqueeze(1), frontier.numbers, frontier.shape, -torch.inf)
        words = spread(words, frontier.numbers, frontier.shape, 0)
        parents = torch.arange(width, device=words.device).unsqueeze(1).expand(images, width, words.shape[2])
        return totals.reshape(images, -1), parents.reshape(images, -1), words.reshape(images, -1)

    def _draw(self, logits: Tensor, at: Tensor) -> Tensor:
        """(R, V) and random numbers (R, n) in [0, 1) -> words (R, n): where the cumulated probabilities pass the
        number."""
        words = None
        if self.top_k:
            logits, words = logits.topk(min(self.top_k, logits.shape[1]))
        elif self.top_p < 1:
            logits, words = logits.sort(descending=True, stable=True)
        passed = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        if self.top_p < 1:
            kept = (
                (passed < self.top_p).sum(1, keepdim=True).clamp(max=passed.shape[1] - 1)
            )  # the place of the last word that is kept
            passed = passed.minimum(passed.gather(1, kept))
        # right: a word of probability 0 is passed over. Where nothing is possible the sums are no numbers, and any word
        # is minus infinity.
        places = torch.searchsorted(passed, at * passed[:, -1:], right=True).clamp_(max=passed.shape[1] - 1)
        return places if words is None else words.gather(1, places)


def random_numbers(seed: int, pictures: Sequence[int], samples: int, length: int) -> np.ndarray:
    """Uniform numbers (I, S, length) float64 in [0, 1), each row (picture, sample) from a generator of its own."""
    rows = [
        np.random.default_rng((seed, int(picture) % 2**64, sample)).random(length)
        for picture in pictures
        for sample in range(samples)
    ]
    return np.array(rows).reshape(len(pictures), samples, length)
