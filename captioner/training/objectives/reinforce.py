"""REINFORCE (Williams 1992) on the positions that hard attention draws (Xu et al. 2015, section 4.1).

For a caption y, drawn positions s and alpha the probabilities they were drawn from, Xu et al. (equations 10 to 12)
ascend

    gradient of log p(y | s) + lambda_r (log p(y | s) - b) * gradient of log p(s) + lambda_e * gradient of H[s]

whose first two terms, at lambda_r = 1, are in expectation the gradient of the bound L = sum over s of p(s) log p(y |
s). H[s] is the sum over the words of the entropy of alpha, on the path s that was drawn. Two things lower the variance
and leave the expectation as it is. The position of word t is credited with the words from t on, since it has no part in
those before. And b, a moving average of what was seen before this step, is that of one word's log-probability and is
subtracted from each word, so that it fits captions of any length (Xu et al. average those of whole captions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.decoder import Decoder
from captioner.parameters import TrainParameters

_KEPT = 0.9  # of the baseline at a step; below equation 11


class Reinforce:
    """The terms of the loss that hard attention has besides the cross entropy, and their baseline.

    Args:
        decoder: with hard attention, in its place.
        parameters: ``hard_reinforce`` is lambda_r, ``hard_entropy`` lambda_e.

    Attributes:
        state: tensors that a resumed run needs: ``baseline``, b, at first that of a guess among all words; the same in
            all processes.
    """

    def __init__(self, decoder: Decoder, parameters: TrainParameters) -> None:
        self._reward, self._entropy = parameters.hard_reinforce, parameters.hard_entropy
        guess = -math.log(decoder.config.vocabulary_size)
        self.state = {"baseline": next(decoder.parameters()).new_full((), guess)}

    def loss(self, attention: Tensor, positions: Tensor, likelihoods: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The terms of a batch, summed over its tokens.

        Args:
            attention: (I, K, T, P), alpha.
            positions: (I, K, T) int64, those drawn, -1 where the expected value was used: nothing to reinforce there.
            likelihoods: (I, K, T), log-likelihoods of the words to predict, without gradient.
            mask: (I, K, T) bool, where there is one.

        Returns:
            A scalar to backpropagate from, and (2,) for ``update``: the sum of the log-likelihoods where positions were
            drawn, and how many words that is.
        """
        drawn = (positions >= 0) & mask
        logs = attention.clamp_min(torch.finfo(attention.dtype).tiny).log()
        entropies = -(attention * logs).sum(-1) * mask
        log_probabilities = logs.gather(-1, positions.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        rewards = (likelihoods - self.state["baseline"]) * mask
        advantages = rewards.flip(2).cumsum(2).flip(2) * drawn  # of each word and those after it
        loss = -(self._reward * advantages * log_probabilities + self._entropy * entropies).sum()
        return loss, torch.stack([(likelihoods * drawn).sum(), drawn.sum().to(attention.dtype)])

    def update(self, statistics: Tensor) -> None:
        """Update the baseline by a step: the second output of ``loss``, summed over all batches and ranks."""
        total, count = statistics
        share = (1 - _KEPT) * (count > 0).to(total.dtype)
        self.state["baseline"].lerp_(total / count.clamp_min(1), share)
