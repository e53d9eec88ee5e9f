"""Masked cross entropy under teacher forcing, with label smoothing and the doubly stochastic penalty of attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captioner.batches import inputs_and_targets
from captioner.cuda_graphs import graphed, pad_images, pad_length
from captioner.decoder import Decoder, unmasked
from captioner.decoder.attention import HardAttention
from captioner.device import to_device
from captioner.parameters import TrainParameters
from captioner.teacher_forcing import token_cross_entropy
from captioner.training.data import GlobalBatch
from captioner.training.objectives.base import Objective
from captioner.training.objectives.reinforce import Reinforce
from captioner.training.objectives.scheduled_sampling import mix_inputs
from captioner.training.schedules import sampled_share
from captioner.vocabulary.vocabulary import PAD


class CrossEntropy(Objective):
    """The sum over all tokens of a step, divided by their number.

    So several batches of a step, or the shards of several ranks, give the gradient of one large batch.
    """

    metric, counted = "train_cross_entropy", "tokens"

    def __init__(self, decoder: Decoder, options: TrainParameters) -> None:
        super().__init__(decoder)
        self.options = options
        self._sampled = graphed(decoder)
        attention = getattr(decoder, "attention", None)
        self.hard = attention if isinstance(attention, HardAttention) else None
        self.reinforce = Reinforce(decoder, options) if self.hard else None
        if self.reinforce:
            self.state, self.statistics = self.reinforce.state, 3

    def prepare(
        self, features: Tensor, tokens: Tensor, counts: GlobalBatch, scale: float, epochs: float
    ) -> tuple[Tensor, ...]:
        """See ``Objective``: features, inputs, targets, scales of a token and a caption, positions of targets."""
        device, share = features.device, sampled_share(self.options, epochs)
        inputs, targets = inputs_and_targets(tokens)
        if device.type == "cuda":  # few shapes, because each has a graph of its own
            features = pad_images(features)
            inputs, targets = (pad_length(pad_images(part)) for part in (inputs, targets))
        dtype = next(self.decoder.parameters()).dtype
        scales = to_device(np.array([scale / counts.tokens, scale / counts.captions]), device).to(dtype)
        index = target_index(targets, device)
        targets = targets.to(device, non_blocking=True)
        if share:  # in fp32, as evaluation computes
            inputs = mix_inputs(self._sampled, features, inputs, share)
        else:
            inputs = inputs.to(device, non_blocking=True)
        return features, inputs, targets, scales, index

    def forward(  # type: ignore[override]
        self, features: Tensor, inputs: Tensor, targets: Tensor, scales: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features (I, P, C), inputs and targets (I, K, T), scales (2,), index (M,) -> loss, statistics (1 or 3,)."""
        logits, attention = self.decoder(self.decoder.encode(features), inputs, index)
        wanted = targets.flatten()[index]
        losses = entropies = token_cross_entropy(logits, wanted)  # (M,)
        if self.options.label_smoothing:
            losses = token_cross_entropy(logits, wanted, self.options.label_smoothing)
        token_scale, caption_scale = scales.unbind()
        loss = losses.sum() * token_scale
        statistics = entropies.detach().sum().reshape(1)
        mask = targets != PAD  # (I, K, T)
        if self.options.doubly_stochastic:
            loss = loss + self.options.doubly_stochastic * caption_scale * attention_coverage(attention, mask)
        if self.hard and self.reinforce:
            likelihoods = entropies.new_zeros(mask.numel()).index_copy(0, index, -entropies.detach())
            terms, seen = self.reinforce.loss(
                attention, self.hard.drawn_positions(), likelihoods.view(mask.shape), mask
            )
            loss, statistics = loss + terms * token_scale, torch.cat([statistics, seen])
        return loss, statistics

    def finish(self, statistics: Tensor, counts: GlobalBatch) -> tuple[Tensor, int]:
        """See ``Objective``: the summed cross entropy in nats, and how many tokens."""
        if self.reinforce:
            self.reinforce.update(statistics[1:])
        return statistics[0], counts.tokens


def target_index(targets: Tensor, device: torch.device) -> Tensor:
    """The positions of targets (I, K, T), on the CPU, whose logits are computed: (M,) int64 on ``device``.

    Those that are not PAD; on a GPU all, because a CUDA graph wants fixed shapes.
    """
    return torch.arange(targets.numel(), device=device) if device.type == "cuda" else unmasked(targets)


def attention_coverage(attention: Tensor, mask: Tensor) -> Tensor:
    """Sum over captions and positions of (1 - sum over steps of the weight)^2; Xu et al. 2015, equation 14.

    Args:
        attention: (I, K, T, P) weights.
        mask: (I, K, T) bool, where there is a token to predict.
    """
    total = (attention * mask.unsqueeze(-1)).sum(2)  # (I, K, P)
    return ((1 - total).square().sum(-1) * mask[..., 0]).sum()
