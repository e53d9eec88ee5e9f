"""One step of the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.decoder.norm import BatchNorm
from captioner.decoder.packing import Packing
from captioner.parameters import TrainParameters
from captioner.training.loss import attention_coverage
from captioner.training.parallel import Whole
from captioner.training.reinforce import Reinforce
from captioner.training.scheduled_sampling import mix_inputs
from captioner.training.vocabulary_loss import vocabulary_loss

if TYPE_CHECKING:
    from captioner.training.graph import StepGraph


def training_step(
    decoder: CaptionDecoder,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor] | None],
    parameters: TrainParameters,
    whole: Whole | None = None,
    reinforce: Reinforce | None = None,
    graph: StepGraph | None = None,
) -> tuple[Tensor, int]:
    """Teacher forcing (or scheduled sampling) and backward pass of one batch after another, then clipping and one
    update.

    The loss is the sum over all tokens of the step, divided by their number: several batches are to it what one large
    one would be, but a batch norm takes the statistics of each.

    Args:
        batches: features (I, P, C) on any device and tokens (I, K, T + 1) int64 of each; None for one of which this
            process has no picture.
        whole: the step of all processes, of which ``batches`` is this one's share; None: they are all of it.
        reinforce: what hard attention learns by; None with any other.
        graph: does the forward and backward passes on a GPU, once it was fitted to the batches; None: they are done
            here.

    Returns:
        The cross entropy summed over the step's tokens, a detached scalar, and how many tokens that is.
    """
    whole = whole or Whole.of([tokens for _, tokens in batches])
    optimizer.zero_grad(set_to_none=True)
    graph = graph if graph is not None and graph.recorded else None
    if graph:
        graph.clear_gradients()
    figures, device = [], decoder.vocabulary.weight.device
    for batch in batches:
        if batch is None:
            _take_part(decoder)
            continue
        features, tokens = batch
        features = features.to(device, non_blocking=True)
        inputs = (
            mix_inputs(decoder, features, tokens, whole.sampled) if whole.sampled else None
        )  # in fp32, as evaluation computes
        if graph:
            figures.append(graph.backward(features, tokens, inputs, 1 / whole.tokens, 1 / whole.captions))
        else:
            packing = Packing.of(tokens, device, inputs)
            figures.append(
                backward(decoder, features, packing, 1 / whole.tokens, 1 / whole.captions, parameters, reinforce)
            )
    total = sum(figures[1:], figures[0]) if figures else decoder.vocabulary.weight.new_zeros(3 if reinforce else 1)
    total = finish_step(optimizer, total, parameters.clip, whole)
    if reinforce:
        reinforce.update(total[1:])
    return total[0], whole.tokens


def finish_step(optimizer: torch.optim.Optimizer, figures: Tensor, clip: float, whole: Whole) -> Tensor:
    """After the backward passes: gradients added up over all processes, clipping, one update. The sums of everybody's
    ``figures``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    figures = whole.group.sum_gradients(parameters, figures)
    if clip:
        clip_gradients(parameters, clip)
    optimizer.step()
    return figures


def _take_part(decoder: CaptionDecoder) -> None:
    """The forward and backward pass of a process without a picture, for the sums that a batch norm makes in the passes
    of the others."""
    if isinstance(decoder.norm, BatchNorm):
        config = decoder.config
        decoder.encode(decoder.norm.weight.new_zeros(0, config.positions, config.channels)).values.sum().backward()


def backward(
    decoder: CaptionDecoder,
    features: Tensor,
    packing: Packing,
    a_token: float | Tensor,
    a_caption: float | Tensor,
    parameters: TrainParameters,
    reinforce: Reinforce | None,
) -> Tensor:
    """Add a batch's gradients, its part of those of the whole step. Nothing here waits for a GPU, nor depends on values
    that are on it.

    Args:
        features: (I, P, C) on the decoder's device.
        packing: of its captions.
        a_token, a_caption: what one of them counts in the loss: 1 / tokens and 1 / captions of the whole step; numbers
            or scalars.

    Returns:
        Its summed cross entropy and, with hard attention, the two figures of ``reinforce``; (1,) or (3,).
    """
    with autocast(features.device, parameters):
        hidden, weights, positions = decoder.packed_hidden(features, packing)
        counted = None if packing.real is None else packing.real.to(hidden.dtype)
        loss, entropies = vocabulary_loss(
            decoder.vocabulary, hidden, packing.targets, a_token, counted, smoothing=parameters.label_smoothing
        )
    entropies = packing.masked(entropies)
    figures = entropies.sum().reshape(1)
    if parameters.doubly_stochastic:
        loss = loss + parameters.doubly_stochastic * a_caption * attention_coverage(weights, packing)
    if positions is not None:
        terms, seen = reinforce.loss(weights, positions, -entropies, packing)
        loss, figures = loss + terms * a_token, torch.cat([figures, seen])
    loss.backward()
    return figures


def autocast(device: torch.device, parameters: TrainParameters) -> torch.autocast:
    """The context in which a step's products are of ``train.precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=parameters.precision == "bf16")


def clip_gradients(parameters: list[Tensor], largest: float) -> None:
    """Scale all gradients so that their common norm is at most ``largest`` (Pascanu et al. 2013, algorithm 1).

    On a CPU, where a look at the norm costs nothing, gradients that need no scaling are not touched.
    """
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or norm > largest:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
