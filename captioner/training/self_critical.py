"""Self-critical sequence training (Rennie et al. 2017): REINFORCE on the reward of sampled captions, less a baseline.

For the captions w that the decoder itself draws, r their reward and b a baseline that does not depend on w,

    gradient of the expected reward = E[(r(w) - b) * gradient of log p(w)]

b is the reward of the picture's greedy caption (Rennie et al., equation 9), or the mean of the picture's other samples
(Luo 2020, "A better variant of self-critical sequence training"), which costs no decoding of its own. The estimate has
no bias because both passes
are over one distribution: the decoder in eval mode, without dropout, and without the words that are never drawn; and
because the sum is divided by the number of captions, which is fixed, and not by that of their tokens, which depends on
what was drawn. (With train.precision=bf16 captions are drawn in fp32, as evaluation computes, and the products of the
gradient are rounded.)

With scst_dropout the pass that is differentiated has dropout all the same: the gradient is then E[(r(w) - b) * gradient
of log q(w)], the mean over networks q with units dropped, for captions w of the whole one. That is no longer the
gradient of the expected reward; it is meant against learning few training pictures by heart, and helped a little
(docs/results.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.parameters import TrainParameters
from captioner.training.parallel import Whole
from captioner.training.sampling import NEVER_DRAWN, sample_captions
from captioner.training.step import autocast, finish_step
from captioner.training.vocabulary_loss import vocabulary_loss

Reward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Captions (I, K, T + 1) and references (I, R, L + 1) to (I, K) float64; ``CaptionReward`` is one."""


def self_critical_step(
    reward: Reward,
    max_length: int,
    decoder: CaptionDecoder,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor] | None],
    parameters: TrainParameters,
    whole: Whole | None = None,
) -> tuple[Tensor, int]:
    """Sampling, reward and backward pass of one batch after another, then clipping and one update.

    Args:
        reward: what a caption is worth.
        max_length: words of the longest caption.
        batches: features (I, P, C) on any device and all references (I, R, L + 1) int64, on the CPU, of each; None
            for one of which this process has no picture.
        whole: the step of all processes, of which ``batches`` is this one's share; None: they are all of it.

    Returns:
        The rewards summed over the step's samples, a scalar that is NaN where the loss is not finite, and how many
        samples that is.
    """
    whole = whole or Whole.of([references for _, references in batches])
    count = parameters.scst_samples * whole.images
    optimizer.zero_grad(set_to_none=True)
    total, device = decoder.vocabulary.weight.new_zeros(()), decoder.vocabulary.weight.device
    for features, references in filter(None, batches):
        features = features.to(device, non_blocking=True)
        decoder.eval()
        tokens, advantages, rewards = sample_advantages(decoder, features, references, reward, max_length, parameters)
        decoder.dropout.train(parameters.scst_dropout)  # and nothing else: a batch norm keeps its running statistics
        with autocast(device, parameters):
            loss = policy_loss(decoder, features, tokens, advantages, count)
        loss.backward()
        total = total + rewards.sum() + 0 * loss.detach()  # a decoder of NaN still says something, which has a reward
    return finish_step(optimizer, total, parameters.clip, whole), count


def sample_advantages(
    decoder: CaptionDecoder,
    features: Tensor,
    references: Tensor,
    reward: Reward,
    max_length: int,
    parameters: TrainParameters,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw captions (I, S, T + 1); their rewards less the baseline, and their rewards, (I, S) both."""
    samples, greedy = parameters.scst_samples, parameters.scst_baseline == "greedy"
    tokens = sample_captions(decoder, features, samples, max_length, greedy)
    rewards = torch.from_numpy(reward(tokens.cpu().numpy(), references.numpy())).to(
        features.device, decoder.vocabulary.weight.dtype
    )
    drawn = rewards[:, :samples]
    other = rewards[:, samples:] if greedy else (drawn.sum(1, keepdim=True) - drawn) / (samples - 1)
    return tokens[:, :samples], drawn - other, drawn


def policy_loss(decoder: CaptionDecoder, features: Tensor, tokens: Tensor, advantages: Tensor, count: int) -> Tensor:
    """-sum of advantage * log p(caption) / ``count``: a scalar to backpropagate from.

    Args:
        tokens: (I, S, T + 1) int64 captions drawn by ``sample_captions``.
        advantages: (I, S), how much better than expected each one is.
        count: captions of the whole step.
    """
    hidden, _, packing, _ = decoder.hidden(features, tokens)
    weights = advantages.flatten()[packing.caption]  # (M,)
    return vocabulary_loss(decoder.vocabulary, hidden, packing.targets, 1 / count, weights, banned=NEVER_DRAWN)[0]
