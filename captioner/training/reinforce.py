"""What hard attention learns by: REINFORCE (Williams 1992) on the positions it draws (Xu et al. 2015, section 4.1).

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

from captioner.decoder import CaptionDecoder
from captioner.decoder.packing import Packing
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

    def __init__(self, decoder: CaptionDecoder, parameters: TrainParameters) -> None:
        self._reward, self._entropy = parameters.hard_reinforce, parameters.hard_entropy
        weight = decoder.vocabulary.weight
        self.state = {"baseline": weight.new_full((), -math.log(len(weight)))}

    def loss(
        self, weights: Tensor, positions: Tensor, log_likelihoods: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """A batch's terms, summed over its tokens.

        Args:
            weights: (M, P), alpha of the packed tokens.
            positions: (M,) int64, those drawn, -1 where the expected value was used: there is nothing to reinforce
                there.
            log_likelihoods: (M,), of the words to predict, without gradient.

        Returns:
            A scalar to backpropagate from, and (2,) for ``update``: the sum of the words' log-likelihoods where
            positions were drawn, and how many words that is.
        """
        drawn = positions >= 0 if packing.real is None else (positions >= 0) & packing.real
        logs = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
        entropies = -packing.masked((weights * logs).sum(-1))
        log_probabilities = logs.gather(1, positions.clamp_min(0).unsqueeze(1)).squeeze(1)
        advantages = torch.where(
            drawn, _from_here_on(packing.masked(log_likelihoods - self.state["baseline"]), packing), 0.0
        )
        loss = -(self._reward * advantages * log_probabilities + self._entropy * entropies).sum()
        return loss, torch.stack([torch.where(drawn, log_likelihoods, 0.0).sum(), drawn.sum().to(weights.dtype)])

    def update(self, figures: Tensor) -> None:
        """Take into the baseline what was seen in a step: ``loss``'s (2,) added up over all batches of all
        processes."""
        total, count = figures
        share = (1 - _KEPT) * (count > 0).to(total.dtype)
        self.state["baseline"].lerp_(total / count.clamp_min(1), share)


def _from_here_on(values: Tensor, packing: Packing) -> Tensor:
    """(M,) of the packed tokens -> for each the sum of its own and those of its caption's later words."""
    images, captions, length = packing.shape
    table = values.new_zeros(images * captions, length)
    table[packing.caption, packing.step] = values
    return table.flip(1).cumsum(1).flip(1)[packing.caption, packing.step]
