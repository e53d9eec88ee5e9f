"""An exported model that captions any images with onnxruntime, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captioner.captioning.base import MOST_READERS, BaseCaptioner
from captioner.captioning.onnx.beam import Arrays, beam_search
from captioner.captioning.onnx.files import CONFIG, ENCODER, MEMORY, STEP, Export, read_export
from captioner.captioning.readers import ImageReaders
from captioner.captioning.recipe import read_recipe
from captioner.captioning.results import Caption
from captioner.cores import core_count
from captioner.errors import CaptionerError

_ENCODED = 4  # images at once, as captioner.features.forward.CPU_BATCH: their activations stay in a core's cache
_BATCH = 64


def open_session(graph: bytes, name: str) -> Any:
    """An ``onnxruntime.InferenceSession`` of a graph, on one thread of the CPU: each batch has a thread of its own.

    Args:
        name: of the graph, for error messages.

    Raises:
        CaptionerError: onnxruntime is not installed, or cannot load the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise CaptionerError(
            f"onnxruntime: cannot be imported ({error}); in the program's folder: pip install '.[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, and what else it logs would stand among captions
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base class
        reason = str(error).strip().splitlines()[0]
        raise CaptionerError(
            f"{name}: onnxruntime {onnxruntime.__version__} cannot load it ({reason}); update onnxruntime, or export "
            "again"
        ) from error


class Graphs:
    """The three graphs of an export, in onnxruntime.

    Raises:
        CaptionerError: onnxruntime is missing or cannot load one, or they do not fit together.
    """

    def __init__(self, folder: Path, export: Export) -> None:
        self._encoder, self._memory, self._step = (
            open_session(export.graphs[name], str(folder / name)) for name in (ENCODER, MEMORY, STEP)
        )
        self._inputs = [tensor.name for tensor in self._step.get_inputs()]  # tokens, memory, state
        self._states = len(self._step.get_outputs()) - 2
        if len(self._memory.get_outputs()) != len(self._inputs) - 1:
            raise CaptionerError(
                f"{folder}: {MEMORY} and {STEP} are not of one decoder; copy the export's folder again, or export again"
            )

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8 -> features (B, P, C) float16."""
        parts = [pixels[first : first + _ENCODED] for first in range(0, len(pixels), _ENCODED)]
        return np.concatenate([self._encoder.run(None, {"images": part})[0] for part in parts])

    def begin(self, features: np.ndarray) -> tuple[Arrays, Arrays]:
        """Features (I, P, C) float16 -> memory, and the state before START of one beam."""
        found = self._memory.run(None, {"features": features})
        return found[: len(found) - self._states], found[len(found) - self._states :]

    def step(self, tokens: np.ndarray, memory: Arrays, state: Arrays) -> tuple[np.ndarray, np.ndarray, Arrays]:
        """See ``beam.Step``."""
        values: Sequence[np.ndarray] = [tokens, *memory, *state]
        logits, weights, *state = self._step.run(None, dict(zip(self._inputs, values, strict=True)))
        return logits, weights, state


class OnnxCaptioner(BaseCaptioner):
    """See ``BaseCaptioner``.

    Attributes:
        graphs: encoder and decoder.
    """

    def __init__(self, folder: Path, export: Export, readers: ImageReaders) -> None:
        super().__init__(export.vocabulary, readers, core_count(), (_ENCODED, _BATCH))
        self.grid = (export.config["grid"][0], export.config["grid"][1])
        self.dataset = str(export.config["dataset"])
        self.title = f"{export.config['encoder']} + {export.config['decoder']}"
        self._rules, self.graphs = export.rules, Graphs(folder, export)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> OnnxCaptioner:
        """Read a folder that ``captioner export DIR --onnx`` made.

        Raises:
            CaptionerError: no export there, a damaged one or one of another version; onnxruntime is not installed.
        """
        folder = Path(folder)
        export = read_export(folder)
        readers = ImageReaders(read_recipe(folder / CONFIG, export.config), min(core_count(), MOST_READERS))
        try:
            return cls(folder, export, readers)
        except BaseException:
            readers.close()
            raise

    def search(self, pixels: np.ndarray, beam: int, n_best: int, attention: bool) -> list[tuple[Caption, ...] | None]:
        """See ``BaseCaptioner``."""
        features = self.graphs.encode(pixels)
        finite = np.isfinite(features).all(axis=(1, 2))  # (B,)
        if not finite.any():
            return [None] * len(pixels)
        memory, state = self.graphs.begin(features[finite])
        found = iter(beam_search(self.graphs.step, memory, state, self._rules, beam, n_best, attention))
        return [
            tuple(
                self._caption(hypothesis.tokens, hypothesis.log_probability, hypothesis.score, hypothesis.attention)
                for hypothesis in next(found)
            )
            if is_finite
            else None
            for is_finite in finite
        ]
