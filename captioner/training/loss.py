"""What training minimises: masked cross entropy, and the doubly stochastic penalty of soft attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.decoder import TeacherForced


def summed_cross_entropy(outputs: TeacherForced) -> Tensor:
    """Negative log-likelihood of the real target tokens in nats, summed (no padding is among them); a scalar."""
    return F.cross_entropy(outputs.logits, outputs.targets, reduction="sum")


def correct_tokens(outputs: TeacherForced) -> Tensor:
    """How many target tokens have the highest logit; an int64 scalar."""
    return (outputs.logits.argmax(-1) == outputs.targets).sum()


def attention_coverage(outputs: TeacherForced) -> Tensor:
    """Mean over captions of sum over positions of (1 - sum over steps of the weight)^2; Xu et al. 2015, equation 14."""
    images, captions, _ = outputs.shape
    total = outputs.weights.new_zeros(images * captions, outputs.weights.shape[-1]).index_add(0, outputs.caption, outputs.weights)  # (I * K, P)
    real = torch.zeros(images * captions, dtype=torch.bool, device=total.device).index_fill(0, outputs.caption, True)
    return ((1 - total[real]) ** 2).sum(-1).mean()
