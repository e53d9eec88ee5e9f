"""Figures of a batch of predictions: cross entropy, token accuracy, and the doubly stochastic penalty of soft
attention."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from captioner.decoder import TeacherForced
from captioner.decoder.packing import Packing


def summed_cross_entropy(outputs: TeacherForced) -> Tensor:
    """Negative log-likelihood of the real target tokens in nats, summed (no padding is among them); a scalar."""
    return F.cross_entropy(outputs.logits, outputs.targets, reduction="sum")


def correct_tokens(outputs: TeacherForced) -> Tensor:
    """How many target tokens have the highest logit; an int64 scalar."""
    return (outputs.logits.argmax(-1) == outputs.targets).sum()


def attention_coverage(weights: Tensor, packing: Packing) -> Tensor:
    """Sum over captions and positions of (1 - sum over steps of the weight)^2; Xu et al. 2015, equation 14.

    Args:
        weights: (M, P) attention weights of the packed tokens.
    """
    images, captions, _ = packing.shape
    total = weights.new_zeros(images * captions, weights.shape[-1]).index_add(
        0, packing.caption, packing.masked(weights)
    )  # (I * K, P)
    first = slice(packing.steps[0].rows)  # the tokens of the first step, one a caption
    missing = ((1 - total[packing.caption[first]]) ** 2).sum(-1)
    return (missing if packing.real is None else missing * packing.real[first]).sum()
