"""A trained model that captions any images, on a CPU or a GPU.

An image's features are made as the stages ``download`` and ``extract`` would: the same shrinking, the same JPEG, the
same square. On a CPU the last bits of a feature also depend on which images stand beside it in a batch, there as
here; captions hardly ever do.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from captioner.captioning.encoder import load_encoder
from captioner.captioning.hub import HubMixin
from captioner.captioning.readers import ImageReaders
from captioner.captioning.results import Caption, ImageCaptions
from captioner.device import core_count, keep_freed_memory, resolve_device
from captioner.errors import CaptionerError
from captioner.features.forward import CPU_BATCH, ImageEncoder
from captioner.features.reading import ReadImage, Recipe
from captioner.model_io import CONFIG, Model, load_model
from captioner.parameters import EvaluateParameters
from captioner.pretrained import FLICKR8K
from captioner.search import Hypothesis, beam_search

ImageSource = str | os.PathLike[str] | Image.Image
_BATCH = {"cpu": 64, "cuda": 256}
_MOST_BEAM = 100
_MOST_READERS = 16


class Captioner(HubMixin):
    """A model at work. A context manager: leaving it ends the processes that read images, which else end with the
    program.

    Attributes:
        model: decoder, vocabulary and configuration.
        encoder: makes its features.
        device: where the arithmetic runs.
        folder: where the model came from.
    """

    def __init__(self, model: Model, encoder: ImageEncoder, readers: ImageReaders, folder: Path) -> None:
        self.model, self.device, self.folder = model, encoder.device, folder
        self.encoder, self._readers = encoder, readers
        self._decoder = model.decoder.to(encoder.device)
        self._end = weakref.finalize(self, readers.close)

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
        model = load_model(folder)
        readers = ImageReaders(_recipe(folder, model), min(core_count(), _MOST_READERS))
        try:
            with _one_thread():
                return cls(model, load_encoder(folder, model, chosen), readers, folder)
        except BaseException:
            readers.close()
            raise

    def caption(
        self, images: ImageSource | Sequence[ImageSource], beam: int = 5, n_best: int = 3, attention: bool = False
    ) -> list[ImageCaptions]:
        """Captions of images, in their order.

        Args:
            images: paths or open Pillow images, one or several.
            beam: beam size; 1 is greedy search.
            n_best: captions an image, at most ``beam``.
            attention: also say where the decoder looked for each word, and give a small copy of the image.

        Returns:
            One result an image; where one cannot be read its ``error`` says why.

        Raises:
            CaptionerError: ``beam`` or ``n_best`` is out of bounds, or the model gives values that are not finite.
        """
        return list(self.stream(images, beam, n_best, attention))

    def stream(
        self, images: ImageSource | Sequence[ImageSource], beam: int = 5, n_best: int = 3, attention: bool = False
    ) -> Iterator[ImageCaptions]:
        """As ``caption``, each result as soon as it and those before it are there; memory does not grow with the number
        of images."""
        for name, value in (("beam", beam), ("n_best", n_best)):
            if not 1 <= value <= _MOST_BEAM:
                raise CaptionerError(f"{name}={value}: it must be 1 to {_MOST_BEAM}")
        if isinstance(images, (str, os.PathLike, Image.Image)):
            images = [images]
        return self._stream(images, beam, n_best, attention)

    def close(self) -> None:
        """End the processes that read images."""
        self._end()

    def __enter__(self) -> Captioner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self, images: Sequence[ImageSource], beam: int, n_best: int, attention: bool
    ) -> Iterator[ImageCaptions]:
        """Images are read some batches ahead; on a CPU each core computes a batch of its own, which is faster than
        all at one."""
        workers = 1 if self.device.type == "cuda" else core_count()
        share = -(-len(images) // workers)
        size = max(CPU_BATCH, min(_BATCH[self.device.type], -(-share // CPU_BATCH) * CPU_BATCH))
        names = [
            f"image {number}" if isinstance(image, Image.Image) else os.fspath(image)
            for number, image in enumerate(images, 1)
        ]
        before = torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, "captioner", initializer=self._enter)
        waiting: deque[Future[list[ImageCaptions]]] = deque()
        try:
            for first in range(0, len(images), size):
                part = names[first : first + size]
                sources = [
                    image if isinstance(image, Image.Image) else os.fspath(image)
                    for image in images[first : first + size]
                ]
                reads = self._readers.read(sources, attention)
                waiting.append(pool.submit(self._batch, part, reads, beam, n_best, attention))
                if len(waiting) > workers + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(before)

    def _enter(self) -> None:
        """What a thread that computes does first."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        else:
            torch.set_num_threads(1)

    def _batch(
        self, names: list[str], reads: list[Future[list[ReadImage]]], beam: int, n_best: int, attention: bool
    ) -> list[ImageCaptions]:
        found = [image for read in reads for image in read.result()]
        good = [number for number, read in enumerate(found) if read.pixels is not None]
        results = [ImageCaptions(name, error=read.error) for name, read in zip(names, found, strict=True)]
        if not good:
            return results
        features = self.encoder(
            np.stack([read.pixels for read in found if read.pixels is not None])
        )  # (B, P, C) float16
        finite = torch.isfinite(features).all(dim=(1, 2)).tolist()
        for number in [number for number, is_finite in zip(good, finite, strict=True) if not is_finite]:
            results[number] = ImageCaptions(names[number], error="its features are not finite")
        good, features = (
            [number for number, is_finite in zip(good, finite) if is_finite],
            features[torch.tensor(finite, device=features.device)],
        )
        rules = EvaluateParameters()
        captions = beam_search(
            self._decoder,
            features,
            beam,
            rules.max_length,
            rules.min_length,
            rules.length_normalisation,
            rules.no_repeat_ngram,
            keep=n_best,
            attention=attention,
        )
        for number, hypotheses in zip(good, captions, strict=True):
            read = found[number]
            results[number] = ImageCaptions(
                names[number], tuple(map(self._caption, hypotheses)), None, read.image, read.box
            )
        return results

    def _caption(self, hypothesis: Hypothesis) -> Caption:
        vocabulary, attention = self.model.vocabulary, hypothesis.attention
        words = tuple(vocabulary.words[token] for token in hypothesis.tokens)
        return Caption(
            vocabulary.decode(hypothesis.tokens),
            words,
            hypothesis.log_probability,
            hypothesis.score,
            None if attention is None else attention.numpy(),
        )


def _recipe(folder: Path, model: Model) -> Recipe:
    try:
        stored, seen = model.config["images"], model.config["preprocessing"]
        recipe = Recipe(
            stored["image_size"],
            stored["jpeg_quality"],
            seen["fit"],
            seen["image_size"],
            seen.get("resample", Recipe.resample),
            seen.get("crop_pct", Recipe.crop_pct),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CaptionerError(
            f"{folder / CONFIG}: what it says of its images is damaged ({error}); copy the model's folder again"
        ) from error
    numbers = (recipe.image_size, recipe.jpeg_quality, recipe.side)
    if (
        not all(type(number) is int and 0 < number <= 2048 for number in numbers)
        or recipe.jpeg_quality > 100
        or recipe.fit not in ("squash", "crop")
        or recipe.resample not in [filter.name.lower() for filter in Image.Resampling]
        or type(recipe.crop_pct) not in (int, float)
        or not 0 < recipe.crop_pct <= 1
    ):
        raise CaptionerError(
            f"{folder / CONFIG}: what it says of its images is damaged ({recipe}); copy the model's folder again"
        )
    return recipe


@contextmanager
def _one_thread() -> Iterator[None]:
    """Arithmetic without a team of threads, which would go on to slow down this process after its work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
