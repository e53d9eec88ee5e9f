"""Optimisers, their parameter groups, and the average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captioner.decoder import Decoder
from captioner.decoder.norm import BatchNorm
from captioner.errors import CaptionerError
from captioner.parameters import TrainParameters

OPTIMIZERS = {
    "adam": torch.optim.Adam,  # Kingma and Ba 2015
    "adamw": torch.optim.AdamW,  # Loshchilov and Hutter 2019
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,  # Tieleman and Hinton 2012
    "adagrad": torch.optim.Adagrad,  # Duchi et al. 2011
}
_MOMENTUM = ("sgd", "rmsprop")
_FUSED = {"adam": ("cpu", "cuda"), "adamw": ("cpu", "cuda"), "sgd": ("cpu", "cuda"), "adagrad": ("cpu",), "rmsprop": ()}


def build_optimizer(decoder: Decoder, parameters: TrainParameters) -> torch.optim.Optimizer:
    """The optimiser ``train.optimizer`` with the groups of ``parameter_groups``; fused into one kernel where torch can,
    else foreach.

    Weight decay is added to the gradient (an L2 penalty), except with adamw, where it shrinks the weights themselves.

    Raises:
        CaptionerError: a momentum for an optimiser that has none.
    """
    kind, options = parameters.optimizer, {}
    if parameters.momentum and kind not in _MOMENTUM:
        raise CaptionerError(
            f"train.momentum={parameters.momentum:g}: train.optimizer={kind} has no such momentum; set it to 0, or "
            f"take {' or '.join(_MOMENTUM)}"
        )
    if kind in _MOMENTUM:
        options["momentum"] = parameters.momentum
    fused = decoder.device.type in _FUSED[kind]
    groups = parameter_groups(decoder, parameters.weight_decay)
    return OPTIMIZERS[kind](groups, lr=0.0, **options, **({"fused": True} if fused else {"foreach": True}))


def parameter_groups(decoder: Decoder, weight_decay: float) -> list[dict[str, Any]]:
    """The decoder's parameters, then the feature projection's, as groups whose key ``part`` is ``decoder`` or
    ``projection``.

    With a weight decay each of them is two groups, the second without it: biases, norms, word vectors and positions are
        not decayed.
    """
    apart = {id(parameter) for parameter in decoder.projection_parameters()}
    spared = {
        id(parameter)
        for module in decoder.modules()
        if isinstance(module, (nn.LayerNorm, BatchNorm, nn.Embedding))
        for parameter in module.parameters()
    }
    spared |= {
        id(parameter)
        for name, parameter in decoder.named_parameters()
        if name.rpartition(".")[2] in ("bias", "tied_bias", "position", "word_position")
    }
    parts: dict[str, list[nn.Parameter]] = {"decoder": [], "projection": decoder.projection_parameters()}
    parts["decoder"] = [
        parameter for parameter in decoder.parameters() if parameter.requires_grad and id(parameter) not in apart
    ]
    groups = []
    for part, members in parts.items():
        if not weight_decay:  # one group: the order of the parameters decides the last bits of the gradients' norm
            groups.append({"params": members, "part": part, "weight_decay": 0.0})
            continue
        for decay in (weight_decay, 0.0):
            chosen = [parameter for parameter in members if (id(parameter) in spared) == (decay == 0)]
            if chosen:
                groups.append({"params": chosen, "part": part, "weight_decay": decay})
    return groups


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Give the decoder's and the projection's groups their learning rates."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["part"] == "projection"]


class EMA:
    """Exponential moving average of weights (Polyak and Juditsky 1992), the weights themselves at first.

    The t-th update, from 0, keeps min(decay, (1 + t) / (10 + t)) of the average: early weights, which are far from
    good, are soon forgotten.

    Running statistics of a batch norm are averaged alike: they are of the projection's outputs, whose mean is linear in
    its weights, so the average of the means is the mean under the average of the weights.

    Args:
        weights: name -> parameter or running statistic, as training changes them.
        decay: what is kept of the average at a step.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step``, counted from 0."""
        kept = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._weights.values()), 1 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the weights are the average; afterwards they are what they were."""
        kept = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(kept)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back ``tensors`` of a saved state."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(tensors[name])


def clip_gradients(parameters: Sequence[Tensor], largest: float) -> None:
    """Scale all gradients so that their common norm is at most ``largest`` (Pascanu et al. 2013, algorithm 1).

    On a CPU, where a look at the norm costs nothing, gradients that need no scaling are not touched.
    """
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or norm > largest:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
