"""An export's captions beside those of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.captioning import Captioner, ImageCaptions
from captioner.captioning.onnx.beam import beam_search
from captioner.captioning.onnx.captioner import Graphs, OnnxCaptioner, open_session
from captioner.captioning.onnx.files import MEMORY, STEP, read_export
from captioner.captioning.recipe import read_recipe
from captioner.decoder import Decoder
from captioner.export.graphs import flatten
from captioner.features.reading import read_image
from captioner.model_io import CONFIG
from captioner.search import beam_search as torch_beam_search


def both(models: Path, exported: Path, images: Sequence[Path], **options: object) -> list[list[ImageCaptions]]:
    """What torch says, and what onnxruntime says."""
    with Captioner.load(models, "cpu") as torch_captioner, OnnxCaptioner.load(exported) as onnx_captioner:
        return [captioner.caption(images, **options) for captioner in (torch_captioner, onnx_captioner)]


def assert_same(ours: list[ImageCaptions], theirs: list[ImageCaptions], tolerance: float = 1e-4) -> None:
    """The same words in the same order; ``tolerance`` is of log-probabilities per word."""
    for our, their in zip(ours, theirs, strict=True):
        assert (our.name, our.error, our.box) == (their.name, their.error, their.box)
        assert [caption.words for caption in our.captions] == [caption.words for caption in their.captions]
        for one, other in zip(our.captions, their.captions, strict=True):
            assert one.text == other.text
            assert one.score == pytest.approx(other.score, abs=tolerance)
            assert one.log_probability == pytest.approx(other.log_probability, abs=tolerance * (len(one.words) + 1))
            assert (one.attention is None) == (other.attention is None)
            if one.attention is not None:
                assert one.attention.dtype == other.attention.dtype
                assert np.allclose(one.attention, other.attention, atol=1e-4)


def assert_same_from_features(models: Path, exported: Path, images: Sequence[Path]) -> None:
    """Features are equal but for the last bits of float16, and captions of the same features to 1e-4 per word."""
    with Captioner.load(models, "cpu") as captioner:
        recipe = read_recipe(models / CONFIG, captioner.model.config)
        pixels = np.stack([read_image(str(path), recipe, False).pixels for path in images])
        export = read_export(exported)
        graphs = Graphs(exported, export)
        features, wanted = graphs.encode(pixels), captioner.encoder(pixels).numpy()
        assert np.allclose(features.astype(np.float32), wanted.astype(np.float32), rtol=2**-9, atol=2**-9)
        memory, state = graphs.begin(features)
        ours = beam_search(graphs.step, memory, state, export.rules, 5, 3)
        rules = dataclasses.astuple(export.rules)
        theirs = torch_beam_search(captioner.model.decoder, torch.from_numpy(features), 5, *rules, keep=3)
    for our, their in zip(ours, theirs, strict=True):
        assert [one.tokens for one in our] == [one.tokens for one in their]
        assert [one.score for one in our] == pytest.approx([one.score for one in their], abs=1e-4)


@torch.no_grad()
def step_differences(decoder: Decoder, graphs: dict[str, bytes], words: int, seed: int = 0) -> list[float]:
    """Largest difference of log-probabilities from torch's for each of some steps, over 4 images with 3 beams of random
    words; with the same shapes for one image and one beam."""
    generator = torch.Generator().manual_seed(seed)
    config, differences = decoder.config, []
    memory_session, step_session = (open_session(graphs[name], name) for name in (MEMORY, STEP))
    names = [tensor.name for tensor in step_session.get_inputs()]
    for images, beams in ((4, 3), (1, 1)):
        features = torch.randn(images, config.positions, config.channels, generator=generator).half()
        memory = decoder.encode(features)
        begun = memory_session.run(None, {"features": features.numpy()})
        count = len(flatten(memory))
        for ours, theirs in zip(begun[:count], flatten(memory), strict=True):
            assert np.allclose(ours, theirs.numpy(), atol=1e-4)
        ours = [np.repeat(array, beams, 1) if array.ndim else array for array in begun[count:]]
        state = decoder.initial_state(memory, beams)
        for _ in range(words):
            tokens = torch.randint(0, config.vocabulary_size, (images, beams), generator=generator)
            values = dict(zip(names, [tokens.numpy(), *begun[:count], *ours], strict=True))
            logits, weights, *ours = step_session.run(None, values)
            wanted, state, attention = decoder.step(tokens, state, memory)
            assert np.allclose(weights, attention.numpy(), atol=0.02)
            found = torch.from_numpy(logits).log_softmax(-1)
            differences.append(float((found - wanted.log_softmax(-1)).abs().max()))
    return differences
