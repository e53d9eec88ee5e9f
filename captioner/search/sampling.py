"""Sampling: captions drawn from the model's distribution with temperature, top-k and top-p, whatever else is in the
batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captioner.search.engine import Frontier


class SamplingStrategy:
    """S captions of each image, drawn independently token by token.

    A token is drawn from the softmax of the constrained logits divided by ``temperature``. Of its tokens the ``top_k``
    most likely are kept (Fan et al. 2018), then of these the fewest whose probabilities reach ``top_p`` (nucleus
    sampling, Holtzman et al. 2020), and the probabilities are renormalised. The log-probability of a hypothesis is the
    model's own, without any of that, so captions are comparable with those of beam search. The best of the S samples is
    the one with the best score.

    The random numbers of a sample come from its own NumPy generator, seeded by ``seed``, the image's id and the
    sample's index, one number a token. So the captions of an image depend neither on its batch nor on the number of
    samples, and more samples begin with the same ones.

    Args:
        samples: S.
        image_ids: ids of the batch's images.
        max_length: words of the longest caption.
        seed: of all draws; not negative.
        temperature: below 1 sharper, above 1 flatter than the model.
        top_k: 0: all tokens.
        top_p: 1: all tokens; the most likely token is always kept.
    """

    def __init__(
        self,
        samples: int,
        image_ids: Sequence[int],
        max_length: int,
        seed: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        self.beam_size = self.groups = samples  # every sample is its own group, so it goes on until it ends
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._noise = torch.from_numpy(random_numbers(seed, image_ids, samples, max_length + 1))

    def choose(self, logits: Tensor, offsets: Tensor, frontier: Frontier) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Strategy``. One continuation of each sample."""
        width = logits.shape[1]
        self._noise = self._noise.to(logits.device)
        noise = self._noise[frontier.images, :, frontier.step]  # (J, S)
        # at step 0 all samples of an image continue the one empty hypothesis
        noise = noise.unsqueeze(1 if frontier.step == 0 else 2)  # (J, K', n)
        tokens = self._draw(logits, noise)
        totals = logits.gather(2, tokens) + offsets.unsqueeze(2)
        parents = torch.arange(width, device=tokens.device).unsqueeze(1).expand_as(tokens)
        return totals.flatten(1), parents.flatten(1), tokens.flatten(1)

    def _draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Logits (J, K', V) and random numbers (J, K', n) in [0, 1) -> tokens (J, K', n), by inverse transform."""
        tokens = None
        if self.top_k:
            logits, tokens = logits.topk(min(self.top_k, logits.shape[2]))
        elif self.top_p < 1:
            logits, tokens = logits.sort(descending=True, stable=True)
        cumulated = (logits.double() / self.temperature).softmax(2).cumsum(2)
        if self.top_p < 1:
            # the last token that is kept
            last = (cumulated < self.top_p).sum(2, keepdim=True).clamp(max=cumulated.shape[2] - 1)
            cumulated = cumulated.minimum(cumulated.gather(2, last))
        # right: skip tokens of probability 0. Where all tokens are banned the sums are NaN; any token does, since its
        # logit is minus infinity.
        index = torch.searchsorted(cumulated, noise * cumulated[..., -1:], right=True)
        index = index.clamp_(max=cumulated.shape[2] - 1)
        return index if tokens is None else tokens.gather(2, index)


def random_numbers(seed: int, image_ids: Sequence[int], samples: int, length: int) -> np.ndarray:
    """Uniform numbers (I, S, length) float64 in [0, 1), each row (image, sample) from its own generator."""
    rows = [
        np.random.default_rng((seed, int(image_id) % 2**64, sample)).random(length)
        for image_id in image_ids
        for sample in range(samples)
    ]
    return np.array(rows).reshape(len(image_ids), samples, length)
