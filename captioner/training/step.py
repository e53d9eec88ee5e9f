"""One step of the optimiser."""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.parameters import TrainParameters
from captioner.training.loss import attention_coverage
from captioner.training.vocabulary_loss import vocabulary_loss


def build_optimizer(decoder: CaptionDecoder, parameters: TrainParameters) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015) with two groups: the decoder, then the feature projection."""
    projection = decoder.projection_parameters()
    apart = {id(parameter) for parameter in projection}
    rest = [parameter for parameter in decoder.parameters() if parameter.requires_grad and id(parameter) not in apart]
    return torch.optim.Adam(
        [{"params": rest, "lr": parameters.learning_rate}, {"params": projection, "lr": parameters.projection_learning_rate}], fused=True
    )


def training_step(
    decoder: CaptionDecoder, optimizer: torch.optim.Optimizer, features: Tensor, tokens: Tensor, parameters: TrainParameters
) -> tuple[Tensor, int]:
    """Teacher forcing, backward pass, clipping, update.

    Args:
        features: (I, P, C) on the decoder's device.
        tokens: (I, K, T + 1) int64.

    Returns:
        The batch's cross entropy summed over its tokens, a detached scalar, and how many tokens that is.
    """
    hidden, weights, packing = decoder.hidden(features, tokens)
    count = packing.targets.numel()
    loss, entropies = vocabulary_loss(
        decoder.vocabulary, hidden, packing.targets, 1 / count, smoothing=parameters.label_smoothing
    )
    if parameters.doubly_stochastic:
        loss = loss + parameters.doubly_stochastic * attention_coverage(weights, packing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if parameters.clip:
        clip_gradients([parameter for group in optimizer.param_groups for parameter in group["params"]], parameters.clip)
    optimizer.step()
    return entropies.sum(), count


def clip_gradients(parameters: list[Tensor], largest: float) -> None:
    """Scale all gradients so that their common norm is at most ``largest`` (Pascanu et al. 2013, algorithm 1).

    On a CPU, where a look at the norm costs nothing, gradients that need no scaling are not touched.
    """
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or norm > largest:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
