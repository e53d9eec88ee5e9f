"""Self-critical sequence training (Rennie et al. 2017): REINFORCE on the reward of sampled captions, less a baseline.

For the captions w that the decoder itself draws, r their reward and b a baseline that does not depend on w,

    gradient of the expected reward = E[(r(w) - b) * gradient of log p(w)]

b is the reward of the picture's greedy caption (Rennie et al., equation 9), or the mean of the picture's other samples (Luo 2020, "A
better variant of self-critical sequence training"), which costs no decoding of its own. The estimate has no bias because both passes
are over one distribution: the decoder in eval mode, without dropout, and without the words that are never drawn; and because the sum
is divided by the number of captions, which is fixed, and not by that of their tokens, which depends on what was drawn.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.training.sampling import NEVER_DRAWN, sample_captions
from captioner.training.step import clip_gradients
from captioner.training.vocabulary_loss import vocabulary_loss

Reward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Captions (I, K, T + 1) and references (I, R, L + 1) to (I, K) float64; ``CaptionReward`` is one."""


def self_critical_step(
    decoder: CaptionDecoder, optimizer: torch.optim.Optimizer, features: Tensor, references: Tensor, reward: Reward,
    samples: int, max_length: int, baseline: str, clip: float,
) -> tuple[float, Tensor]:  # fmt: skip
    """Sample, score, backward pass, clipping, update.

    Args:
        features: (I, P, C) on the decoder's device.
        references: (I, R, L + 1) int64 tokens of the pictures' captions, on the CPU.
        reward: what a caption is worth.
        samples: S, captions drawn for each picture; with the baseline ``mean`` at least 2.
        max_length: words of the longest caption.
        baseline: ``mean`` of the picture's other samples, or its ``greedy`` caption.
        clip: largest gradient norm; 0: no clipping.

    Returns:
        The samples' mean reward, and the loss, a detached scalar that says nothing but whether it is finite.
    """
    decoder.eval()
    tokens, advantages, mean = sample_advantages(decoder, features, references, reward, samples, max_length, baseline)
    optimizer.zero_grad(set_to_none=True)
    loss = policy_loss(decoder, features, tokens, advantages)
    loss.backward()
    if clip:
        clip_gradients([parameter for group in optimizer.param_groups for parameter in group["params"]], clip)
    optimizer.step()
    return mean, loss.detach()


def sample_advantages(
    decoder: CaptionDecoder, features: Tensor, references: Tensor, reward: Reward, samples: int, max_length: int, baseline: str
) -> tuple[Tensor, Tensor, float]:
    """Draw captions (I, S, T + 1); their rewards less the baseline (I, S), and the mean of their rewards."""
    tokens = sample_captions(decoder, features, samples, max_length, greedy=baseline == "greedy")
    rewards = torch.from_numpy(reward(tokens.cpu().numpy(), references.numpy()))  # (I, K)
    drawn = rewards[:, :samples]
    other = rewards[:, samples:] if baseline == "greedy" else (drawn.sum(1, keepdim=True) - drawn) / (samples - 1)
    return tokens[:, :samples], drawn - other, float(drawn.mean())


def policy_loss(decoder: CaptionDecoder, features: Tensor, tokens: Tensor, advantages: Tensor) -> Tensor:
    """-sum of advantage * log p(caption), divided by the number of captions: a scalar to backpropagate from.

    Args:
        tokens: (I, S, T + 1) int64 captions drawn by ``sample_captions``.
        advantages: (I, S), how much better than expected each one is.
    """
    hidden, _, packing = decoder.hidden(features, tokens)
    weights = advantages.flatten().to(hidden)[packing.caption]  # (M,)
    return vocabulary_loss(decoder.vocabulary, hidden, packing.targets, 1 / advantages.numel(), weights, banned=NEVER_DRAWN)[0]
