"""A model as three modules from tensors to tensors, and their ONNX graphs.

``captioner.captioning.onnx.files`` says what each takes and gives.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captioner.captioning.onnx.captioner import open_session
from captioner.captioning.onnx.files import ENCODER, MAX_BYTES, MEMORY, STEP
from captioner.decoder import Decoder
from captioner.errors import CaptionerError
from captioner.features.forward import ImageEncoder

_OPSET = 20
_IMAGES, _BEAMS, _WORDS = 3, 2, 4  # of the example that is traced: each another, none 0 or 1, which would be constants
_TOLERANCE = 1e-2  # of what onnxruntime gives for the example, relative to the largest value: float16 has 11 bits

Dimensions = Any  # of dynamic_shapes: nested lists of {dimension: name}


class EncoderGraph(nn.Module):
    """Images (B, S, S, 3) uint8 -> features (B, P, C) float16; the normalisation is that of ``ImageEncoder``."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder.encoder
        spec = encoder.encoder.spec
        self.register_buffer("mean", torch.tensor(spec.mean) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(spec.std) * 255))

    def forward(self, images: Tensor) -> Tensor:
        """Images -> features."""
        normalised = (images.float() - self.mean) * self.scale  # type: ignore[operator]
        return self.encoder(normalised.permute(0, 3, 1, 2)).half()


class MemoryGraph(nn.Module):
    """Features (I, P, C) float16 -> the tensors of memory and of the state before START of one beam."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor) -> list[Tensor]:
        """Features -> memory and state."""
        memory = self.decoder.encode(features)
        # an output of its own for each, also where two are one tensor
        return [tensor.clone() for part in (memory, self.decoder.initial_state(memory, 1)) for tensor in flatten(part)]


class StepGraph(nn.Module):
    """Tokens (I, K) int64, tensors of memory and state -> logits, attention, tensors of the next state.

    Args:
        memory, state: an example, for their types.
    """

    def __init__(self, decoder: Decoder, memory: Any, state: Any) -> None:
        super().__init__()
        self.decoder, self._memory, self._state = decoder, memory, state

    def forward(self, tokens: Tensor, memory: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        """One token further."""
        logits, after, weights = self.decoder.step(
            tokens, unflatten(self._state, state), unflatten(self._memory, memory)
        )
        return [logits, weights, *flatten(after)]


def flatten(value: Any) -> list[Tensor]:
    """The tensors of a memory or a state, a dataclass of tensors and tuples of them.

    Raises:
        CaptionerError: it is something else.
    """
    parts = (
        [getattr(value, field.name) for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    )
    tensors = [tensor for part in parts for tensor in (part if isinstance(part, tuple) else (part,))]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise CaptionerError(
            f"decoder: its {type(value).__name__} is no dataclass of tensors, so it cannot be exported to ONNX; make "
            "it one, or use --runtime torch"
        )
    return tensors


def unflatten(like: Any, tensors: Sequence[Tensor]) -> Any:
    """A memory or a state of ``like``'s type with ``tensors`` in the order of ``flatten``."""
    rest = iter(tensors)
    parts = (getattr(like, field.name) for field in dataclasses.fields(like))
    return type(like)(*(tuple(next(rest) for _ in part) if isinstance(part, tuple) else next(rest) for part in parts))


def encoder_graph(encoder: ImageEncoder) -> bytes:
    """``encoder.onnx``.

    Args:
        encoder: on the CPU, in fp32.

    Raises:
        CaptionerError: torch cannot export it, or onnxruntime computes something else.
    """
    side = encoder.encoder.spec.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_IMAGES, side, side, 3), dtype=torch.uint8, generator=generator)
    return _export(
        EncoderGraph(encoder), ENCODER, (images,), ({0: torch.export.Dim("images")},), ["images"], ["features"]
    )


@torch.no_grad()
def decoder_graphs(decoder: Decoder, channels: int, positions: int) -> dict[str, bytes]:
    """``memory.onnx`` and ``decoder_step.onnx``, by name.

    Args:
        decoder: on the CPU, in eval mode.
        channels, positions: C and P of its features.

    Raises:
        CaptionerError: torch cannot export it, or onnxruntime computes something else.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(_IMAGES, positions, channels, generator=generator).half()
    memory = decoder.encode(features)
    state = decoder.initial_state(memory, _BEAMS)
    tokens = torch.randint(0, decoder.config.vocabulary_size, (_IMAGES, _BEAMS), generator=generator)
    for _ in range(_WORDS):
        _, state, _ = decoder.step(tokens, state, memory)
    images, beams = torch.export.Dim("images"), torch.export.Dim("beams")
    memory_tensors, state_tensors = flatten(memory), flatten(state)
    inputs = [f"memory_{number}" for number in range(len(memory_tensors))]
    states = [f"state_{number}" for number in range(len(state_tensors))]
    next_states = [f"next_{number}" for number in range(len(state_tensors))]
    words = torch.export.Dim("words", max=decoder.longest)  # in a cache before the last step of search
    growing = [
        _growing(before, after) for before, after in zip(flatten(decoder.initial_state(memory, 1)), state_tensors)
    ]
    state_dimensions = [
        {} if tensor.dim() == 0 else {0: images, 1: beams, **dict.fromkeys(dimensions, words)}
        for tensor, dimensions in zip(state_tensors, growing)
    ]
    return {
        MEMORY: _export(MemoryGraph(decoder), MEMORY, (features,), ({0: images},), ["features"], [*inputs, *states]),
        STEP: _export(
            StepGraph(decoder, memory, state),
            STEP,
            (tokens, memory_tensors, state_tensors),
            ({0: images, 1: beams}, [{0: images} for _ in memory_tensors], state_dimensions),
            ["tokens", *inputs, *states],
            ["logits", "attention", *next_states],
        ),
    }


def _growing(before: Tensor, after: Tensor) -> list[int]:
    """Dimensions of a state, beside images and beams, that grow with the words: a cache."""
    return [
        number for number, (old, new) in enumerate(zip(before.shape[2:], after.shape[2:], strict=True), 2) if old != new
    ]


def _export(
    module: nn.Module,
    name: str,
    example: tuple[Any, ...],
    dimensions: Dimensions,
    inputs: list[str],
    outputs: list[str],
) -> bytes:
    """A module's graph with its weights inside."""
    module = module.eval()
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size > MAX_BYTES:
        raise CaptionerError(
            f"{name}: weights of {size / 1e9:.1f} GB, but one ONNX graph holds {MAX_BYTES / 1e9:.1f}; use --runtime "
            "torch, or a smaller model"
        )
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                dynamic_shapes=dimensions,
                external_data=False,
                input_names=inputs,
                output_names=outputs,
                opset_version=_OPSET,
                verbose=False,
            )
    except ImportError as error:
        raise CaptionerError(
            f"{name}: exporting needs onnx and onnxscript ({error}); install them: pip install '.[onnx]'"
        ) from error
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise CaptionerError(
            f"{name}: torch {torch.__version__} cannot export it to ONNX ({reason}); use --runtime torch, or another "
            "encoder or decoder"
        ) from error
    assert program is not None  # with dynamo
    graph = _without_traces(program.model_proto).SerializeToString()
    _check(module, graph, name, example, inputs)
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of torch and onnxscript about their own code: the user cannot act on them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _without_traces(model: Any) -> Any:
    """The ONNX model without notes on where its operations come from, which name files of this machine."""
    for graph in (model.graph, *model.functions):
        for part in (
            graph,
            *graph.node,
            *graph.value_info,
            *getattr(graph, "input", ()),
            *getattr(graph, "output", ()),
        ):
            if hasattr(part, "metadata_props"):
                part.ClearField("metadata_props")
                part.ClearField("doc_string")
    model.ClearField("metadata_props")
    return model


@torch.no_grad()
def _check(module: nn.Module, graph: bytes, name: str, example: tuple[Any, ...], inputs: list[str]) -> None:
    """Raise unless onnxruntime gives for the example what torch does."""
    tensors = [tensor for part in example for tensor in (part if isinstance(part, list) else [part])]
    session = open_session(graph, name)
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)})
    wanted = module(*example)
    for ours, theirs in zip(found, [wanted] if isinstance(wanted, Tensor) else wanted, strict=True):
        expected = theirs.float().numpy()
        difference = np.abs(ours.astype(np.float32) - expected).max(initial=0.0)
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0))):
            raise CaptionerError(
                f"{name}: onnxruntime's result differs from torch's by {difference:.3g}; use --runtime torch, or other "
                "versions of torch and onnxruntime"
            )
