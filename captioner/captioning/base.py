"""Captioning apart from its arithmetic: images are read ahead, and batches computed on several threads.

It imports no torch.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
from PIL import Image

from captioner.captioning.readers import ImageReaders
from captioner.captioning.results import Caption, ImageCaptions
from captioner.errors import CaptionerError
from captioner.features.reading import ReadImage
from captioner.vocabulary.vocabulary import Vocabulary

ImageSource = str | os.PathLike[str] | Image.Image
MOST_READERS = 16
_MOST_BEAM = 100


class BaseCaptioner:
    """A model at work. A context manager: leaving it ends the processes that read images, which else end with the
    program.

    Args:
        vocabulary: the model's.
        readers: read its images; they are closed with this captioner.
        workers: threads that compute, each a batch of its own.
        batch: (smallest, largest) number of images in a batch; batches are multiples of the smallest.

    Attributes:
        grid: (rows, columns) of the attention.
        dataset: what the model was trained on.
        title: encoder and decoder, for people.
    """

    grid: tuple[int, int]
    dataset: str
    title: str

    def __init__(self, vocabulary: Vocabulary, readers: ImageReaders, workers: int, batch: tuple[int, int]) -> None:
        self.vocabulary, self._readers, self._workers, self._sizes = vocabulary, readers, workers, batch
        self._end = weakref.finalize(self, readers.close)

    def search(self, pixels: np.ndarray, beam: int, n_best: int, attention: bool) -> list[tuple[Caption, ...] | None]:
        """Captions of (B, S, S, 3) uint8, best first; None for an image whose features are not finite."""
        raise NotImplementedError

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter_thread(self) -> None:
        """What a thread that computes does first."""

    def _stream(
        self, images: Sequence[ImageSource], beam: int, n_best: int, attention: bool
    ) -> Iterator[ImageCaptions]:
        """Images are read some batches ahead; on a CPU each core computes a batch of its own, which is faster than
        all at one."""
        smallest, largest = self._sizes
        share = -(-len(images) // self._workers)
        size = max(smallest, min(largest, -(-share // smallest) * smallest))
        names = [
            f"image {number}" if isinstance(image, Image.Image) else os.fspath(image)
            for number, image in enumerate(images, 1)
        ]
        pool = ThreadPoolExecutor(self._workers, "captioner", initializer=self._enter_thread)
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
                if len(waiting) > self._workers + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(
        self, names: list[str], reads: list[Future[list[ReadImage]]], beam: int, n_best: int, attention: bool
    ) -> list[ImageCaptions]:
        found = [image for read in reads for image in read.result()]
        results = [ImageCaptions(name, error=read.error) for name, read in zip(names, found, strict=True)]
        good = [number for number, read in enumerate(found) if read.pixels is not None]
        if not good:
            return results
        pixels = np.stack([read.pixels for read in found if read.pixels is not None])
        for number, captions in zip(good, self.search(pixels, beam, n_best, attention), strict=True):
            name, read = names[number], found[number]
            if captions is None:
                results[number] = ImageCaptions(name, error="its features are not finite")
            else:
                results[number] = ImageCaptions(name, captions, None, read.image, read.box)
        return results

    def _caption(
        self, tokens: tuple[int, ...], log_probability: float, score: float, attention: np.ndarray | None
    ) -> Caption:
        words = tuple(self.vocabulary.words[token] for token in tokens)
        return Caption(self.vocabulary.decode(tokens), words, log_probability, score, attention)
