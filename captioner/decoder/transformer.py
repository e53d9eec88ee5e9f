"""A transformer decoder (Vaswani et al. 2017, section 3.1) over a grid of features, with pre-norm layers (Xiong et al.
2020, "On Layer Normalization in the Transformer Architecture").

For projected features a and x the words, mapped to the width H, plus their positions, each layer is

    x = x + attention(norm x, words so far)      causal self-attention
    x = x + attention(norm x, a)                 attention to the grid
    x = x + W gelu(W norm x)                     four times as wide inside

and logits = W norm x. Its layers are those of ``torch.nn.TransformerDecoder`` with ``norm_first``; a test compares
them. The attention it returns is the last layer's to the grid, the mean of its heads.

Keys and values of the grid are computed once an image for each layer, and the captions of an image are rows of the
query, so nothing is repeated. In search the keys and values of the words so far are cached, and reordered with the
beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.decoder.attention.base import softmax
from captioner.decoder.config import DecoderConfig
from captioner.decoder.grid import GridDecoder
from captioner.decoder.positions import sinusoidal_word_positions
from captioner.decoder.protocol import unmasked
from captioner.errors import CaptionerError

WORD_POSITIONS = ("learned", "sinusoidal")
_INNER = 4  # times the width: the size inside of the feed-forward part (Vaswani et al. 2017, section 3.3)


@dataclass(frozen=True)
class TransformerMemory:
    """Computed once an image.

    Attributes:
        keys, values: of each layer, (I, N, P, H / N) for N heads.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def select(self, images: Tensor) -> TransformerMemory:
        """See ``Memory``."""
        return TransformerMemory(
            tuple(keys.index_select(0, images) for keys in self.keys),
            tuple(values.index_select(0, images) for values in self.values),
        )


@dataclass(frozen=True)
class TransformerState:
    """The words so far.

    Attributes:
        keys, values: of each layer, (I, K, N, t, H / N) for N heads. A cache either grows with the words, t of them, or
            has room for the longest caption from the first step on, zeros where no word is yet.
        count: () int64, the words so far.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    count: Tensor

    def reorder(self, parents: Tensor) -> TransformerState:
        """See ``State``."""
        images, beams = self.keys[0].shape[:2]
        rows = (parents + torch.arange(images, device=parents.device).unsqueeze(1) * beams).flatten()  # (I * K',)

        def chosen(cache: Tensor) -> Tensor:
            return cache.flatten(0, 1).index_select(0, rows).unflatten(0, (images, parents.shape[1]))

        return TransformerState(tuple(map(chosen, self.keys)), tuple(map(chosen, self.values)), self.count)

    def select(self, images: Tensor) -> TransformerState:
        """See ``State``."""
        return TransformerState(
            tuple(keys.index_select(0, images) for keys in self.keys),
            tuple(values.index_select(0, images) for values in self.values),
            self.count,
        )


class TransformerLayer(nn.Module):
    """A pre-norm layer: self-attention, attention to the grid, feed-forward.

    Args:
        size: H.
        memory_size: E.
        heads: N, which divides H.
        dropout: on the output of each of the three parts, and inside of the last one.
    """

    def __init__(self, size: int, memory_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm, self.cross_norm, self.inner_norm = (nn.LayerNorm(size) for _ in range(3))
        self.self_input = nn.Linear(size, 3 * size)  # query, key, value
        self.self_output = nn.Linear(size, size)
        self.cross_query = nn.Linear(size, size)
        self.cross_input = nn.Linear(memory_size, 2 * size)  # key, value
        self.cross_output = nn.Linear(size, size)
        self.inner = nn.Linear(size, _INNER * size)
        self.outer = nn.Linear(_INNER * size, size)
        self.dropout = nn.Dropout(dropout)

    def grid(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Projected features (I, P, E) -> keys and values of the grid, (I, N, P, H / N) both."""
        keys, values = self.cross_input(values).chunk(2, -1)
        return self._split(keys).contiguous(), self._split(values).contiguous()

    def words(self, x: Tensor) -> list[Tensor]:
        """x (I, K, T, H) -> query, key and value of self-attention, (I, K, N, T, H / N) each."""
        return [self._split(part) for part in self.self_input(self.self_norm(x)).chunk(3, -1)]

    def forward(self, x: Tensor, context: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All that follows the sums of self-attention.

        Args:
            x: (I, K, T, H).
            context: (I, K, N, T, H / N), what self-attention found for x.
            keys, values: of the grid, (I, N, P, H / N).

        Returns:
            The next x; the attention to the grid, (I, K, T, P), the mean of the heads'.
        """
        x = x + self.dropout(self.self_output(context.transpose(2, 3).flatten(3)))
        captions = x.shape[1:3]
        query = self._split(self.cross_query(self.cross_norm(x)).flatten(1, 2))  # (I, N, K * T, H / N)
        weights = softmax(query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5)  # (I, N, K * T, P)
        context = (weights @ values).transpose(1, 2).flatten(2).unflatten(1, captions)
        x = x + self.dropout(self.cross_output(context))
        inner = self.dropout(F.gelu(self.inner(self.inner_norm(x))))
        return x + self.dropout(self.outer(inner)), weights.mean(1).unflatten(1, captions)

    def _split(self, rows: Tensor) -> Tensor:
        """(..., R, H) -> (..., N, R, H / N)."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


class TransformerDecoder(GridDecoder):
    """A pre-norm transformer; see ``captioner.decoder.protocol`` for its methods.

    ``hidden_size`` is its width, ``heads`` are those of all its attention, ``max_length`` the longest caption.

    Args:
        config: its settings.
        embeddings: (V, D') float word vectors; None: random ones (to be loaded or trained).

    Raises:
        CaptionerError: an unknown name, an attention mechanism of the recurrent decoders, or sizes that do not fit
            together.
        ValueError: ``embeddings`` has another shape than the settings say.
    """

    def __init__(self, config: DecoderConfig, embeddings: Tensor | None = None) -> None:
        _check(config)
        super().__init__(config, embeddings)
        self.longest = config.max_length
        # START and the words, up to a multiple of 4, because a GPU's batches of training have such lengths
        self.capacity = -(-(config.max_length + 1) // 4) * 4
        size = config.hidden_size
        self.word = nn.Linear(config.embedding_size, size)
        learned = config.word_position == "learned"
        self.word_position = nn.Parameter(torch.randn(self.capacity, size) * 0.1) if learned else None
        layers = (
            TransformerLayer(size, config.feature_size, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.layers = cast("Sequence[TransformerLayer]", nn.ModuleList(layers))
        self.output_norm = nn.LayerNorm(size)
        self.build_vocabulary_layer()

    def encode(self, features: Tensor) -> TransformerMemory:
        """Features (I, P, C) -> memory."""
        values = self.project(features)  # (I, P, E)
        pairs = [layer.grid(values) for layer in self.layers]
        return TransformerMemory(tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs))

    def initial_state(
        self, memory: TransformerMemory, beams: int, fixed_shapes: bool | None = None
    ) -> TransformerState:
        """No word yet.

        Args:
            fixed_shapes: caches have room for the longest caption from the first step on, so that one CUDA graph serves
                all steps; None: on a GPU only. On a CPU a step takes half as long again as with a cache that grows (45
                ms instead of 29 for 32 images, 5 beams, 3 layers of 256, 9,500 words and 12 steps, on one core).
        """
        keys = memory.keys[0]
        room = self.capacity if (keys.is_cuda if fixed_shapes is None else fixed_shapes) else 0
        images, heads, _, size = keys.shape
        cache = self.word.weight.new_zeros(images, beams, heads, room, size)  # fp32 under autocast, as all states
        caches = (cache,) * len(self.layers)  # a step makes new ones
        return TransformerState(caches, caches, torch.zeros((), dtype=torch.int64, device=keys.device))

    def step(
        self, tokens: Tensor, state: TransformerState, memory: TransformerMemory
    ) -> tuple[Tensor, TransformerState, Tensor]:
        """Tokens (I, K) -> logits (I, K, V), the next state, attention (I, K, P).

        A caption has at most as many words as ``max_length``: search refuses longer ones.
        """
        position = state.count.view(1)
        x = self._inputs(tokens.unsqueeze(2), self._word_positions().index_select(0, position))  # (I, K, 1, H)
        fixed = state.keys[0].shape[3] == self.capacity
        mask = (torch.arange(self.capacity, device=tokens.device) <= position).view(1, -1) if fixed else None  # (1, S)
        own_keys, own_values = [], []
        for number, layer in enumerate(self.layers):
            query, key, value = layer.words(x)
            own_keys.append(_extend(state.keys[number], key, position if fixed else None))
            own_values.append(_extend(state.values[number], value, position if fixed else None))
            context = _attend(query, own_keys[-1], own_values[-1], mask)
            x, attention = layer(x, context, memory.keys[number], memory.values[number])
        logits = self.logits(self.dropout(self.output_norm(x.squeeze(2))))
        state = TransformerState(tuple(own_keys), tuple(own_values), state.count + 1)
        return logits, state, attention.squeeze(2)

    def forward(self, memory: TransformerMemory, tokens: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (I, K, T) -> logits (M, V) of the positions ``index`` (M,); attention (I, K, T, P).

        Raises:
            CaptionerError: the captions are longer than ``max_length``.
        """
        length = tokens.shape[2]
        if length > self.capacity:
            raise CaptionerError(
                f"a caption of {length - 1} words: this decoder was made for at most {self.longest}; shorten it, or "
                "train again with a larger vocab.max_length"
            )
        index = unmasked(tokens) if index is None else index
        x = self._inputs(tokens, self._word_positions()[:length])  # (I, K, T, H)
        for layer, keys, values in zip(self.layers, memory.keys, memory.values, strict=True):
            # PAD follows all words, so a causal mask hides it from them
            query, own_keys, own_values = layer.words(x)
            x, attention = layer(x, _attend(query, own_keys, own_values, causal=True), keys, values)
        return self.logits(self.dropout(self.output_norm(x.flatten(0, 2)[index]))), attention

    def _inputs(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens (I, K, T), positions (T, H) -> (I, K, T, H)."""
        return self.dropout(self.word(self.embed(tokens)) + positions)

    def _word_positions(self) -> Tensor:
        """(S, H), S the words of the longest caption with START."""
        if self.word_position is not None:
            return self.word_position
        weight = self.word.weight
        return sinusoidal_word_positions(self.capacity, len(weight), weight.device, weight.dtype)


def _extend(cache: Tensor, new: Tensor, position: Tensor | None) -> Tensor:
    """The cache (I, K, N, t, S) with ``new`` (I, K, N, 1, S) at ``position`` (1,), or behind it where that is None."""
    new = new.to(cache.dtype)
    return torch.cat([cache, new], 3) if position is None else cache.index_copy(3, position, new)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of query (I, K, N, T, S), keys and values (I, K, N, t, S) -> (I, K, N, T, S)."""
    captions = query.shape[:2]
    # torch has a fast path for four dimensions
    query, keys, values = (part.flatten(0, 1) for part in (query, keys, values))
    found = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal)
    return found.unflatten(0, captions)


def _check(config: DecoderConfig) -> None:
    if config.attention != "soft":
        raise CaptionerError(
            f"attention={config.attention}: decoder=transformer has an attention of its own, of train.heads heads; "
            "leave attention=soft, which it does not use, or take decoder=gru or lstm"
        )
    if config.hidden_size % config.heads:
        raise CaptionerError(
            f"train.heads={config.heads}: it does not divide train.hidden_size={config.hidden_size}; "
            "choose another of them"
        )
    if config.word_position not in WORD_POSITIONS:
        raise CaptionerError(
            f"train.word_position={config.word_position}: no such position embedding; it must be one of "
            f"{', '.join(WORD_POSITIONS)}"
        )
    if config.word_position == "sinusoidal":  # an impossible size is refused here, not at the first step
        sinusoidal_word_positions(1, config.hidden_size, torch.device("cpu"), torch.float32)
