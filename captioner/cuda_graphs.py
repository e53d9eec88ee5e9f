"""CUDA graphs: a training pass and a search step launch hundreds of small kernels, which takes longer than they run.

A graph repeats what was recorded, the same kernels on the same shapes; so there is one for each shape of the inputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from captioner.decoder import Decoder
from captioner.device import capture_lock, record, warm_up

_MOST_SHAPES = 64  # of a module or decoder; further ones run without a graph


class GraphedModule(nn.Module):
    """A module whose forward and backward passes are CUDA graphs, by ``torch.cuda.make_graphed_callables``.

    Args:
        module: takes and returns tensors alone; its parameters are this module's.
        enabled: False: the module itself is called, always.
    """

    def __init__(self, module: nn.Module, enabled: bool) -> None:
        super().__init__()
        self.module, self.enabled = module, enabled
        self._graphs: dict[Any, nn.Module] = {}

    def forward(self, *tensors: Tensor) -> Any:
        """The module's outputs, which the next call with the same shapes overwrites."""
        if not self.enabled:
            return self.module(*tensors)
        # training mode and dropout are recorded, too
        key = (tuple(tensor.shape for tensor in tensors), tuple(module.training for module in self.module.modules()))
        if key not in self._graphs:
            if len(self._graphs) >= _MOST_SHAPES:
                return self.module(*tensors)
            samples = tuple(tensor.clone() for tensor in tensors)
            # recording runs the module several times; a resumed run records again and must draw the same numbers after
            generators = {tensor.device for tensor in tensors if tensor.is_cuda}
            with capture_lock, torch.random.fork_rng(generators):
                graphed = torch.cuda.make_graphed_callables(_Call(self.module), samples, allow_unused_input=True)
            self.__dict__["_graphs"][key] = graphed
        return self._graphs[key](*tensors)

    def keep_gradients(self) -> None:
        """Call it between two backward passes whose gradients add up: the next replay overwrites those of the last."""
        if not self.enabled:
            return
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()


class _Call(nn.Module):
    """A module of its own for each shape, because ``make_graphed_callables`` replaces its ``forward``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> Any:
        return self.module(*tensors)


class GraphedDecoder:
    """A decoder whose ``step`` is a CUDA graph, for search and sampling, without gradients.

    Args:
        decoder: on a GPU, with weights that change in place alone.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._graphs: dict[Any, tuple[Any, list[Tensor], Any]] = {}
        self._loaded: dict[Any, Any] = {}  # the memory whose tensors each graph has taken in

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: Any, memory: Any) -> tuple[Tensor, Any, Tensor]:
        """See ``Decoder``. What it returns is copied: the next step may overwrite it."""
        inputs = [tokens, *tensors_of(state), *tensors_of(memory)]
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._graphs:
            if len(self._graphs) >= _MOST_SHAPES:
                return self._decoder.step(tokens, state, memory)
            self._record(key, inputs, state, memory)
        graph, static, outputs = self._graphs[key]
        count = len(inputs) if self._loaded.get(key) is not memory else len(inputs) - len(tensors_of(memory))
        self._loaded[key] = memory
        for own, given in zip(static[:count], inputs[:count]):
            own.copy_(given)
        graph.replay()
        logits, new_state, attention = outputs
        return (
            logits.clone(),
            replaced(new_state, [tensor.clone() for tensor in tensors_of(new_state)]),
            attention.clone(),
        )

    def _record(self, key: Any, inputs: list[Tensor], state: Any, memory: Any) -> None:
        static = [tensor.clone() for tensor in inputs]
        split = 1 + len(tensors_of(state))
        arguments = (static[0], replaced(state, static[1:split]), replaced(memory, static[split:]))
        device = inputs[0].device
        warm_up(lambda: self._decoder.step(*arguments), device)
        graph, outputs = record(lambda: self._decoder.step(*arguments), device)
        self._graphs[key] = (graph, static, outputs)


def pad_images(tensor: Tensor) -> Tensor:
    """(I, ...) with rows of zeros up to one of few numbers: at most an eighth more."""
    unit = 1 << max(0, len(tensor).bit_length() - 4)
    missing = -len(tensor) % unit
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor


def pad_length(tokens: Tensor, multiple: int = 4) -> Tensor:
    """(I, K, T) with PAD up to a multiple of steps."""
    return nn.functional.pad(tokens, (0, -tokens.shape[2] % multiple))


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a memory or state: dataclasses and tuples of them, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, tuple) else [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [tensor for part in parts for tensor in tensors_of(part)]


def replaced(value: Any, tensors: list[Tensor]) -> Any:
    """The same memory or state with other tensors, in the order of ``tensors_of``."""
    remaining = iter(tensors)

    def rebuild(part: Any) -> Any:
        if isinstance(part, Tensor):
            return next(remaining)
        if isinstance(part, tuple):
            return tuple(rebuild(item) for item in part)
        return type(part)(*(rebuild(getattr(part, field.name)) for field in dataclasses.fields(part)))

    return rebuild(value)


def graphed(decoder: Decoder) -> Decoder:
    """The decoder for search and sampling: with a graphed step on a GPU, itself elsewhere."""
    on_gpu = decoder.device.type == "cuda"
    return GraphedDecoder(decoder) if on_gpu else decoder  # type: ignore[return-value]
