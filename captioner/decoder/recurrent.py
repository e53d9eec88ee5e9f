"""Show, Attend and Tell (Xu et al. 2015): a recurrent decoder that attends to a grid of features.

For projected features a and tokens y, with h(0), c(0) = tanh(W mean a):

    z(t)      = attention(h(t-1), a) * sigmoid(W h(t-1))    gated context, sections 3.1.2 and 4.2.1
    h(t)      = cell([y(t), z(t)], h(t-1))
    logits(t) = W (h(t) + W z(t) + W y(t))                   deep output, equation 7

Attention queries the bottom layer; with several layers each further cell reads the h(t) below it, and the output reads
the top layer. With tied weights the last matrix is the word vectors themselves.

Five ideas make it fast: features are projected once; attention keys are computed once an image; the captions of an
image share them as a batch dimension; the vocabulary layer runs once over all tokens; a step leaves out captions that
have ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioner.decoder.attention import build_attention
from captioner.decoder.cells import Cell
from captioner.decoder.config import DecoderConfig
from captioner.decoder.grid import GridDecoder
from captioner.decoder.protocol import unmasked
from captioner.vocabulary.vocabulary import PAD


@dataclass(frozen=True)
class GridMemory:
    """Computed once an image.

    Attributes:
        values: (I, P, E) projected features.
        keys: (I, P, A) attention keys.
        mean: (I, E) mean of the values.
    """

    values: Tensor
    keys: Tensor
    mean: Tensor

    def select(self, images: Tensor) -> GridMemory:
        """See ``Memory``."""
        return GridMemory(*(tensor.index_select(0, images) for tensor in (self.values, self.keys, self.mean)))

    def first(self, count: int) -> GridMemory:
        """The first ``count`` images, as views."""
        return GridMemory(self.values[:count], self.keys[:count], self.mean[:count])


@dataclass(frozen=True)
class RecurrentState:
    """The states of all layers, (I, K, H) each; those of the bottom layer come first, and of a layer h."""

    tensors: tuple[Tensor, ...]

    def reorder(self, parents: Tensor) -> RecurrentState:
        """See ``State``."""
        index = parents.unsqueeze(-1)
        return RecurrentState(tuple(s.gather(1, index.expand(-1, -1, s.shape[-1])) for s in self.tensors))

    def select(self, images: Tensor) -> RecurrentState:
        """See ``State``."""
        return RecurrentState(tuple(tensor.index_select(0, images) for tensor in self.tensors))

    def first(self, images: int, captions: int) -> RecurrentState:
        """The first images and captions of each, as views."""
        return RecurrentState(tuple(tensor[:images, :captions] for tensor in self.tensors))


class Layer(nn.Module):
    """A cell with its matrices: everything but what the bottom layer adds of the word and the context."""

    def __init__(self, cell: Cell, hidden_size: int) -> None:
        super().__init__()
        self.cell = cell
        self.recurrent = nn.Linear(hidden_size, cell.gates * hidden_size)
        for block in self.recurrent.weight.data.split(hidden_size):
            nn.init.orthogonal_(block)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """W x (I, K, gates * H), state (I, K, H) each -> the next state."""
        return self.cell.update(inputs, self.recurrent(state[0]), state)


class RecurrentDecoder(GridDecoder):
    """An attention decoder with LSTM or GRU cells; see ``captioner.decoder.protocol`` for its methods.

    Args:
        config: its settings.
        cell: the kind of recurrent cell.
        embeddings: (V, D') float word vectors; None: random ones (to be loaded or trained).

    Raises:
        CaptionerError: an unknown name, or sizes that do not fit together.
        ValueError: ``embeddings`` has another shape than the settings say.
    """

    def __init__(self, config: DecoderConfig, cell: Cell, embeddings: Tensor | None = None) -> None:
        super().__init__(config, embeddings)
        self.cell = cell
        words, width, size = config.embedding_size, config.feature_size, config.hidden_size  # D, E, H
        self.attention = build_attention(config)
        self.gate = nn.Linear(size, width)

        self.initial = nn.Linear(width, config.layers * cell.states * size)
        self.word = nn.Linear(words, cell.gates * size)  # the bottom layer reads the word and the context
        self.context = nn.Linear(width, cell.gates * size, bias=False)
        self.layers = nn.ModuleList(Layer(cell, size) for _ in range(config.layers))
        self.between = nn.ModuleList(nn.Linear(size, cell.gates * size) for _ in range(config.layers - 1))

        self.output_word = nn.Linear(words, size, bias=False)
        self.output_context = nn.Linear(width, size, bias=False)
        self.build_vocabulary_layer()

    def encode(self, features: Tensor) -> GridMemory:
        """Features (I, P, C) -> memory."""
        values = self.project(features)  # (I, P, E)
        return GridMemory(values, self.attention.keys(values), values.mean(1))

    def initial_state(self, memory: GridMemory, beams: int) -> RecurrentState:
        """tanh(W mean a) for all layers, the same for all beams of an image."""
        first = torch.tanh(
            self.initial(memory.mean).to(self.initial.weight.dtype)
        )  # fp32 under autocast, as all states
        first = first.unsqueeze(1).expand(-1, beams, -1)
        return RecurrentState(first.split(self.config.hidden_size, -1))

    def step(self, tokens: Tensor, state: RecurrentState, memory: GridMemory) -> tuple[Tensor, RecurrentState, Tensor]:
        """Tokens (I, K) -> logits (I, K, V), the next state, attention (I, K, P)."""
        words = self._embed(tokens)  # (I, K, D)
        state, context, weights = self._advance(self.word(words), state, memory)
        return self._logits(self._top(state), context, words), state, weights

    def forward(self, memory: GridMemory, tokens: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (I, K, T) -> logits (M, V) of the positions ``index`` (M,); attention (I, K, T, P)."""
        index = unmasked(tokens) if index is None else index
        active = active_captions(tokens)
        sizes = [images * captions for images, captions in active]
        # the rows of all steps, one step after another, as positions in the flattened tokens: (R,); and the way back
        positions = torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)
        order = torch.cat([positions[:images, :captions, t].flatten() for t, (images, captions) in enumerate(active)])
        rows = torch.zeros_like(positions).flatten().index_copy(0, order, torch.arange(len(order), device=order.device))
        words = self._embed(tokens.flatten()[order])  # (R, D)
        state, shape = self.initial_state(memory, tokens.shape[1]), tuple(tokens.shape[:2])
        hidden, contexts, attention = [], [], []
        self.attention.start_sequence(tokens)
        for inputs, (images, captions) in zip(self.word(words).split(sizes), active):  # (I' * K', gates * H)
            if (images, captions) != shape:
                state, memory, shape = state.first(images, captions), memory.first(images), (images, captions)
            state, context, weights = self._advance(inputs.unflatten(0, shape), state, memory)
            hidden.append(self._top(state).flatten(0, 1))
            contexts.append(context.flatten(0, 1))
            attention.append(weights.flatten(0, 1))
        parts = torch.cat(hidden), torch.cat(contexts), words
        logits = self._logits(*(part.index_select(0, rows[index]) for part in parts))
        weights = torch.cat(attention)
        weights = weights.new_zeros(tokens.numel(), weights.shape[1]).index_copy(0, order, weights)
        return logits, weights.view(*tokens.shape, weights.shape[-1])

    def _advance(
        self, inputs: Tensor, state: RecurrentState, memory: GridMemory
    ) -> tuple[RecurrentState, Tensor, Tensor]:
        """The word's part of the bottom layer's input (I, K, gates * H) -> next state, context (I, K, E), attention."""
        bottom, *above = self._by_layer(state)
        context, weights = self.attention(bottom[0], memory.keys, memory.values, memory.mean)
        context = context * torch.sigmoid(self.gate(bottom[0]))
        own = self.layers[0](inputs + self.context(context), bottom)
        tensors = own
        for layer, between, own_state in zip(self.layers[1:], self.between, above, strict=True):
            own = layer(between(self.dropout(own[0])), own_state)
            tensors = (*tensors, *own)
        return RecurrentState(tensors), context, weights

    def _by_layer(self, state: RecurrentState) -> list[tuple[Tensor, ...]]:
        count = self.cell.states
        return [state.tensors[first : first + count] for first in range(0, len(state.tensors), count)]

    def _top(self, state: RecurrentState) -> Tensor:
        return state.tensors[-self.cell.states]

    def _embed(self, tokens: Tensor) -> Tensor:
        """Tokens (...) int64 -> (..., D)."""
        return self.dropout(self.embed(tokens))

    def _logits(self, hidden: Tensor, context: Tensor, words: Tensor) -> Tensor:
        """Top layer's h (..., H), context (..., E), words (..., D) -> logits (..., V)."""
        return self.logits(self.dropout(hidden + self.output_context(context) + self.output_word(words)))


def active_captions(tokens: Tensor) -> list[tuple[int, int]]:
    """How many images and captions of each a step works on, for tokens (I, K, T): up to the last that has a token.

    Batches have the longest captions first, so that COCO's leave 1.10 rows a token, instead of 1.90 with padding.
    """
    images, captions, steps = tokens.shape
    if tokens.is_cuda or not images:  # a CUDA graph has fixed shapes
        return [(images, captions)] * steps
    active = tokens != PAD
    counts = []
    for dimension, size in ((1, images), (0, captions)):
        numbers = torch.arange(1, size + 1).unsqueeze(1)
        counts.append((active.any(dimension) * numbers).amax(0).tolist())
    return list(zip(*counts))
