"""A trained model that captions any images with torch, on a CPU or a GPU.

An image's features are made as the stages ``download`` and ``extract`` would: the same shrinking, the same JPEG, the
same square. On a CPU the last bits of a feature also depend on which images stand beside it in a batch, there as
here; captions hardly ever do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from captioner.captioning.base import MOST_READERS, BaseCaptioner, ImageSource
from captioner.captioning.encoder import load_encoder
from captioner.captioning.hub import HubMixin
from captioner.captioning.onnx.files import refuse_export
from captioner.captioning.readers import ImageReaders
from captioner.captioning.recipe import read_recipe
from captioner.captioning.results import Caption, ImageCaptions
from captioner.device import core_count, keep_freed_memory, resolve_device
from captioner.features.forward import CPU_BATCH, ImageEncoder
from captioner.model_io import CONFIG, Model, load_model
from captioner.parameters import EvaluateParameters
from captioner.pretrained import FLICKR8K
from captioner.search import beam_search

_BATCH = {"cpu": 64, "cuda": 256}


class Captioner(BaseCaptioner, HubMixin):
    """See ``BaseCaptioner``.

    Attributes:
        model: decoder, vocabulary and configuration.
        encoder: makes its features.
        device: where the arithmetic runs.
        folder: where the model came from.
    """

    def __init__(self, model: Model, encoder: ImageEncoder, readers: ImageReaders, folder: Path) -> None:
        self.model, self.encoder, self.device, self.folder = model, encoder, encoder.device, folder
        self.grid = tuple(model.config["grid"])
        self.dataset = str(model.config["dataset"])
        self.title = f"{model.config['encoder']} + {model.decoder.config.decoder}"
        workers = 1 if self.device.type == "cuda" else core_count()
        super().__init__(model.vocabulary, readers, workers, (CPU_BATCH, _BATCH[self.device.type]))
        self._decoder = model.decoder.to(self.device)

    @classmethod
    def load(cls, folder: str | os.PathLike[str] = FLICKR8K, device: str = "auto") -> Captioner:
        """Read a trained model: the one of photos that comes with the program, or a folder that the stage ``train``
        made.

        Args:
            device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one.

        Raises:
            CaptionerError: no model there, a damaged one or one of another version; the encoder's weights are missing
                or others than it was trained with; no such device.
        """
        folder, chosen = Path(folder), resolve_device(device)
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in captioner.device
        if chosen.type == "cpu":
            keep_freed_memory()
        refuse_export(folder)
        model = load_model(folder)
        readers = ImageReaders(read_recipe(folder / CONFIG, model.config), min(core_count(), MOST_READERS))
        try:
            with _one_thread():
                return cls(model, load_encoder(folder, model, chosen), readers, folder)
        except BaseException:
            readers.close()
            raise

    def search(self, pixels: np.ndarray, beam: int, n_best: int, attention: bool) -> list[tuple[Caption, ...] | None]:
        """See ``BaseCaptioner``."""
        features = self.encoder(pixels)  # (B, P, C) float16
        finite = torch.isfinite(features).all(dim=(1, 2))  # (B,)
        rules = EvaluateParameters()
        found = iter(
            beam_search(
                self._decoder,
                features[finite],
                beam,
                rules.max_length,
                rules.min_length,
                rules.length_normalisation,
                rules.no_repeat_ngram,
                keep=n_best,
                attention=attention,
            )
        )
        return [
            tuple(
                self._caption(
                    hypothesis.tokens,
                    hypothesis.log_probability,
                    hypothesis.score,
                    None if hypothesis.attention is None else hypothesis.attention.numpy(),
                )
                for hypothesis in next(found)
            )
            if is_finite
            else None
            for is_finite in finite.tolist()
        ]

    def _stream(
        self, images: Sequence[ImageSource], beam: int, n_best: int, attention: bool
    ) -> Iterator[ImageCaptions]:
        before = torch.get_num_threads()
        try:
            yield from super()._stream(images, beam, n_best, attention)
        finally:
            torch.set_num_threads(before)

    def _enter_thread(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        else:
            torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Arithmetic without a team of threads, which would go on to slow down this process after its work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
