"""Looks into runs of this process: at the decoder and the optimizer, before and after every step."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from captioner.training import stage

See = Callable[[Any, torch.optim.Optimizer], object]


class Watch:
    """Calls functions with the decoder and the optimizer of each step.

    Attributes:
        before: called when the learning rates are set, before the forward pass.
        after: called when the optimizer has updated the weights.
    """

    def __init__(self) -> None:
        self.before: list[See] = []
        self.after: list[See] = []
        self._decoder: Any = None
        self._patch = pytest.MonkeyPatch()
        build, module = stage.build_decoder, importlib.import_module("captioner.training.train")
        set_rates = module.set_rates

        def build_seen(*arguments: Any) -> nn.Module:
            self._decoder = build(*arguments)
            return self._decoder

        def set_seen(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
            set_rates(optimizer, rates)
            self._call(self.before, optimizer)

        self._patch.setattr(stage, "build_decoder", build_seen)
        self._patch.setattr(module, "set_rates", set_seen)
        self._hook = register_optimizer_step_post_hook(lambda optimizer, *_: self._call(self.after, optimizer))

    def close(self) -> None:
        self._hook.remove()
        self._patch.undo()

    def _call(self, functions: Sequence[See], optimizer: torch.optim.Optimizer) -> None:
        for function in functions:
            function(self._decoder, optimizer)


@dataclass
class Words:
    """A matrix of the decoder, before and after each step of a run."""

    before: list[torch.Tensor]
    after: list[torch.Tensor]


def weights_of(decoder: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and running statistics."""
    return {name: tensor.detach().clone() for name, tensor in decoder.state_dict().items()}
