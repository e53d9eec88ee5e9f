"""Self-critical sequence training (Rennie et al. 2017): REINFORCE on the reward of sampled captions, less a baseline.

For the captions w that the decoder itself draws, r their reward and b a baseline that does not depend on w,

    gradient of the expected reward = E[(r(w) - b) * gradient of log p(w)]

b is the reward of the image's greedy caption (Rennie et al., equation 9), or the mean of the image's other samples
(Luo 2020, "A better variant of self-critical sequence training"), which costs no decoding of its own. The estimate has
no bias because both passes
are over one distribution: the decoder in eval mode, without dropout, and without the words that are never drawn; and
because the sum is divided by the number of captions, which is fixed, and not by that of their tokens, which depends on
what was drawn. (With train.precision=bf16 captions are drawn in fp32, as evaluation computes, and the products of the
gradient are rounded.)

With scst_dropout the pass that is differentiated has dropout all the same: the gradient is then E[(r(w) - b) * gradient
of log q(w)], the mean over networks q with units dropped, for captions w of the whole one. That is no longer the
gradient of the expected reward; it is meant against learning few training images by heart, and helped a little
(docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from captioner.batches import inputs_and_targets
from captioner.cuda_graphs import graphed, pad_images, pad_length
from captioner.decoder import Decoder
from captioner.parameters import TrainParameters
from captioner.teacher_forcing import token_cross_entropy
from captioner.training.data import GlobalBatch
from captioner.training.objectives.base import Objective
from captioner.training.objectives.cross_entropy import target_index
from captioner.training.objectives.sampling import NEVER_DRAWN, sample_captions

Reward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Captions (I, K, T + 1) and references (I, R, L + 1) to (I, K) float64; ``CaptionReward`` is one."""


class SelfCritical(Objective):
    """-sum of advantage * log p(caption) over sampled captions, divided by their number.

    Args:
        decoder: what is trained.
        options: ``train.scst_*``.
        reward: what a caption is worth.
        max_length: words of the longest sample.
    """

    metric, counted = "train_reward", "samples"

    def __init__(self, decoder: Decoder, options: TrainParameters, reward: Reward, max_length: int) -> None:
        super().__init__(decoder)
        self.options, self.reward, self.max_length = options, reward, max_length
        self._sampled = graphed(decoder)

    def prepare(
        self, features: Tensor, tokens: Tensor, counts: GlobalBatch, scale: float, epochs: float
    ) -> tuple[Tensor, ...]:
        """See ``Objective``: features, inputs, targets, advantages, rewards, scale, positions of targets.

        ``tokens`` are the references of each image, all of them.
        """
        self.decoder.eval()
        device = features.device
        samples, advantages, rewards = self.sample(features, tokens)
        inputs, targets = inputs_and_targets(samples)
        if device.type == "cuda":  # few shapes, because each has a graph of its own
            features, advantages, rewards = map(pad_images, (features, advantages, rewards))
            inputs, targets = (pad_length(pad_images(part)) for part in (inputs, targets))
        weight = advantages.new_tensor(scale / (self.options.scst_samples * counts.images))
        index = target_index(targets, device)
        set_dropout(self.decoder, self.options.scst_dropout)
        return (features, inputs, targets, advantages, rewards, weight, index)

    def sample(self, features: Tensor, references: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw captions (I, S, T + 1); their rewards less the baseline, and their rewards, (I, S) both."""
        samples, greedy = self.options.scst_samples, self.options.scst_baseline == "greedy"
        if not len(features):  # a rank without an image
            nothing = features.new_zeros(0, samples, dtype=torch.float32)
            return references.new_zeros(0, samples, 2).to(features.device), nothing, nothing
        padded = pad_images(features) if features.device.type == "cuda" else features
        tokens = sample_captions(self._sampled, padded, samples, self.max_length, greedy)[: len(features)]
        rewards = torch.from_numpy(self.reward(tokens.cpu().numpy(), references.numpy()))
        rewards = rewards.to(features.device, next(self.decoder.parameters()).dtype)
        drawn = rewards[:, :samples]
        other = rewards[:, samples:] if greedy else (drawn.sum(1, keepdim=True) - drawn) / (samples - 1)
        return tokens[:, :samples], drawn - other, drawn

    def forward(  # type: ignore[override]
        self,
        features: Tensor,
        inputs: Tensor,
        targets: Tensor,
        advantages: Tensor,
        rewards: Tensor,
        scale: Tensor,
        index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Features (I, P, C), inputs and targets (I, S, T), advantages (I, S) -> loss, the summed rewards (1,)."""
        logits, _ = self.decoder(self.decoder.encode(features), inputs, index)
        wanted, weights = targets.flatten(), advantages.unsqueeze(-1).expand(targets.shape).flatten()
        wanted, weights = wanted[index], weights[index]
        logits = logits.index_fill(-1, torch.tensor(NEVER_DRAWN, device=logits.device), -math.inf)
        loss = (token_cross_entropy(logits, wanted) * weights).sum() * scale
        # a decoder of NaN still draws captions, which have a reward: the product makes the loss's NaN visible
        return loss, (rewards.sum() + 0 * loss.detach()).reshape(1)

    def finish(self, statistics: Tensor, counts: GlobalBatch) -> tuple[Tensor, int]:
        """See ``Objective``: the summed rewards, and how many samples."""
        return statistics[0], self.options.scst_samples * counts.images


def set_dropout(decoder: nn.Module, active: bool) -> None:
    """Switch dropout and nothing else: a batch norm keeps its running statistics."""
    for module in decoder.modules():
        if isinstance(module, nn.Dropout):
            module.train(active)
