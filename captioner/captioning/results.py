"""What captioning gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from captioner.errors import CaptionerError


@dataclass(frozen=True)
class Caption:
    """One caption of an image.

    Attributes:
        text: its words joined as the language is written: with spaces, or without (vocab.tokenizer=characters).
        words: each of them.
        log_probability: sum of the natural log-probabilities of the words and of the end.
        score: what captions are ranked by: ``log_probability`` over the number of words and end, to the power that
            ``evaluate`` has as its default.
        attention: (T, P) float32, a row a word and the grid row by row; None unless asked for.
    """

    text: str
    words: tuple[str, ...]
    log_probability: float
    score: float
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class ImageCaptions:
    """What became of one image.

    Attributes:
        name: its path as given, or ``image N`` for an open one, N from 1.
        captions: best first; empty where the image could not be captioned.
        error: why it could not, in one line, else None.
        image: the image itself, small and upright, mode RGB; None unless attention was asked for.
        box: (left, top, right, bottom), the part of it that the encoder saw, as shares of its width and height.
    """

    name: str
    captions: tuple[Caption, ...] = ()
    error: str | None = None
    image: Image.Image | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    @property
    def text(self) -> str:
        """The best caption.

        Raises:
            CaptionerError: there is none.
        """
        if self.error is not None:
            raise CaptionerError(f"{self.name}: {self.error}")
        return self.captions[0].text
