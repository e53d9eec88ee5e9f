"""What a decoder is made of: everything that decides the shapes of its tensors and what they mean."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from captioner.errors import CaptionerError

_MOST_LAYERS = 16  # all of them are built before anything is compared with the weights
_ADDED = ("word_position", "max_length")  # models of format 3 may lack them; the defaults do not change these models


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of a caption decoder; JSON-serialisable, stored in ``models/config.json``.

    Attributes:
        decoder: a key of ``captioner.decoder.registry.DECODERS``.
        attention: a key of ``captioner.decoder.attention.ATTENTIONS``; the transformer has its own and wants ``soft``.
        vocabulary_size: V, words with the four special ones.
        embedding_size: D, size of a word as the layers take it in.
        channels: C, size of a feature as stored.
        positions: P, cells of the feature grid.
        feature_size: E, size of a projected feature.
        hidden_size: H, units of a layer, and of the output layer before the vocabulary; the transformer's width.
        attention_size: A, size of the attention's query and keys (``bilinear`` has the features' size, ``none`` has
            neither, and those of the transformer have H / heads).
        heads: of ``multihead`` attention, and of the transformer's.
        position: ``learned`` (a vector for each grid cell), ``sinusoidal`` (of row and column) or ``none``.
        dropout: probability on word vectors, projected features, between layers (in the transformer on what each part
            of a layer adds) and before the vocabulary layer.
        tune_embeddings: word vectors are trained too.
        rows: of the feature grid; P is a multiple of it.
        layers: stacked layers.
        tie_weights: the vocabulary layer's weight is the word vectors.
        norm: of projected features, a key of ``captioner.decoder.norm.NORMS``.
        vector_size: of a word vector; where it is not D, a learned map takes word vectors to D. 0 is D, and becomes it.
        word_position: of the transformer: ``learned`` (a vector for each position of a word) or ``sinusoidal``.
        max_length: words of the longest caption that the transformer gives; the recurrent decoders have no limit.
    """

    decoder: str
    attention: str
    vocabulary_size: int
    embedding_size: int
    channels: int
    positions: int
    feature_size: int = 256
    hidden_size: int = 512
    attention_size: int = 256
    heads: int = 4
    position: str = "learned"
    dropout: float = 0.3
    tune_embeddings: bool = False
    rows: int = 1
    layers: int = 1
    tie_weights: bool = False
    norm: str = "layer"
    vector_size: int = 0
    word_position: str = "learned"
    max_length: int = 30

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector_size", self.vector_size or self.embedding_size)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Any, source: str) -> DecoderConfig:
        """The settings in ``content``; ``source`` names the file in errors.

        Raises:
            CaptionerError: a key is unknown or missing, or a value has a wrong type or range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(content, dict):
            raise CaptionerError(
                f"{source}: the decoder's settings are {content!r}, not a mapping; train again or copy the model's "
                "folder again"
            )
        for name in sorted({*content, *fields}):
            if name in _ADDED and name not in content:
                continue
            if name not in fields:
                raise CaptionerError(
                    f"{source}: unknown decoder setting {name}={content[name]!r}; it comes from another version of "
                    "this program, train again"
                )
            if name not in content:
                raise CaptionerError(
                    f"{source}: the decoder setting {name} is missing; train again or copy the model's folder again"
                )
            kind, value = fields[name].type, content[name]
            right = {"str": isinstance(value, str), "bool": isinstance(value, bool)}.get(str(kind))
            if right is None:
                right = isinstance(value, (int, float) if kind == "float" else int) and not isinstance(value, bool)
                right = right and (0 <= value < 1 if kind == "float" else value > 0)
                right = right and not (name == "layers" and value > _MOST_LAYERS)
            if not right:
                raise CaptionerError(
                    f"{source}: decoder setting {name}={value!r} is no usable {kind}; train again or copy the model's "
                    "folder again"
                )
        return cls(**content)
