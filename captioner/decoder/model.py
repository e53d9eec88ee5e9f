"""Show, Attend and Tell (Xu et al. 2015), arranged so that nothing is computed twice and nothing for padding.

For a grid of features a and words y, with h(-1), c(-1) = tanh(W mean a):

    z(t)   = attention(a, h(t-1)) * sigmoid(W h(t-1))                 gated context, section 3.1.2 and 4.2.1
    h(t)   = cell([y(t-1), z(t)], h(t-1))
    o(t)   = h(t) + W z(t) + W y(t-1)                                 deep output, equation 7; its matrix on h is part
    of the next logits = W o(t)

Features are projected to E dimensions first, and every grid cell has a position, learned or of sines. The three
products of h(t-1) (the query of the attention, the gate, the cell's own) are one; the words' part of the cell's input
is one product for all steps; the output layers run once over all real tokens.

With more layers than one the cell above is the first of them: attention and gate go by its h and its input has z(t);
each further layer takes in the h(t) below it (``captioner.decoder.upper``), and the h(t) of o(t) is the last one's. The
first states of all are tanh(W mean a). Word vectors of another size than D go through a matrix first. With tied weights
W o(t) is E W o(t), E the word vectors; the inner W, which makes o(t) of their size, is absent where it has that size
already.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captioner.decoder.attention import HardAttention, build_attention
from captioner.decoder.cells import build_cell
from captioner.decoder.config import DecoderConfig
from captioner.decoder.deferred import DeferredLinear
from captioner.decoder.dropout import Dropout
from captioner.decoder.memory import Memory, State, TeacherForced
from captioner.decoder.norm import build_norm
from captioner.decoder.packing import PackedStep, Packing
from captioner.decoder.position import sinusoidal_positions
from captioner.decoder.tied import TiedVocabulary
from captioner.decoder.upper import UpperLayer


class CaptionDecoder(nn.Module):
    """A recurrent caption decoder over a grid of features.

    Args:
        config: its settings.
        embeddings: (V, D') float word vectors; None: random ones (to be loaded or tuned).

    Raises:
        CaptionerError: a name that there is not, or sizes that do not fit.
        ValueError: ``embeddings`` has another shape than the settings say.
    """

    def __init__(self, config: DecoderConfig, embeddings: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        size, width = config.hidden_size, config.feature_size
        self.cell = build_cell(config.decoder)
        self.embedding = nn.Embedding(config.vocabulary_size, config.vector_size)
        if embeddings is not None:
            if tuple(embeddings.shape) != tuple(self.embedding.weight.shape):
                raise ValueError(
                    f"word vectors {tuple(embeddings.shape)}, settings {tuple(self.embedding.weight.shape)}"
                )
            self.embedding.weight.data.copy_(embeddings)
        self.embedding.weight.requires_grad_(config.tune_embeddings)
        self.projection = nn.Linear(config.channels, width)
        self.norm = build_norm(config.norm, width)
        self.position = (
            nn.Parameter(torch.randn(config.positions, width) * 0.1) if config.position == "learned" else None
        )
        self.attention = build_attention(config)
        self.initial = nn.Linear(width, config.layers * self.cell.states * size)
        columns = self.cell.gates * size
        self.word = nn.Linear(config.embedding_size, columns)  # into the cell
        self.context = nn.Linear(width, columns, bias=False)  # into the cell, where the word's part has a bias
        self._columns = (self.attention.query_size, width, columns)
        self.recurrent = nn.Linear(size, sum(self._columns))  # rows: query, gate of the context, cell
        self.output_word = nn.Linear(config.embedding_size, size, bias=False)
        self.output_context = nn.Linear(width, size, bias=False)
        self.vocabulary = (
            TiedVocabulary(self.embedding) if config.tie_weights else nn.Linear(size, config.vocabulary_size)
        )
        self.dropout = Dropout(config.dropout)
        for block in self.recurrent.weight.data[-columns:].split(size):
            nn.init.orthogonal_(block)
        self.upper = nn.ModuleList(UpperLayer(self.cell, size) for _ in range(config.layers - 1))
        self.embedding_map = _map(config.vector_size, config.embedding_size)
        self.output_map = _map(size, config.vector_size) if config.tie_weights else nn.Identity()

    def projection_parameters(self) -> list[nn.Parameter]:
        """The parameters of the feature projection, which have a learning rate of their own."""
        return [
            *self.projection.parameters(),
            *self.norm.parameters(),
            *([] if self.position is None else [self.position]),
        ]

    def encode(self, features: Tensor) -> Memory:
        """Features (I, P, C), any float dtype, to what all hypotheses of a picture share."""
        values = self.norm(self.projection(features.to(self.projection.weight.dtype)))  # (I, P, E)
        if self.position is not None:
            values = values + self.position
        elif self.config.position == "sinusoidal":
            rows = self.config.rows
            values = values + sinusoidal_positions(
                rows, values.shape[1] // rows, values.shape[2], values.device, values.dtype
            )
        values = self.dropout(values.to(self.projection.weight.dtype))
        return Memory(values, self.attention.keys(values).to(values.dtype), values.mean(1))

    def start(self, memory: Memory, hypotheses: int) -> State:
        """The state before START, for K hypotheses of each picture."""
        return State(tuple(tensor.unsqueeze(1).expand(-1, hypotheses, -1) for tensor in self._initial(memory)))

    def step(
        self, words: Tensor, state: State, memory: Memory, live: Tensor | None = None
    ) -> tuple[Tensor, State, Tensor]:
        """One word further.

        Args:
            words: (I, K) int64, the last word of each hypothesis, START at first.
            state: of the hypotheses.
            memory: of the pictures.
            live: (R,) int64, the hypotheses that go on, numbered image * K + k and rising; None: all of them.

        Returns:
            Logits (R, V) of the live hypotheses, a fresh tensor; the next state; attention weights (I, K, P). What the
            last two say of the other hypotheses means nothing.
        """
        hidden, state, weights = self.advance(words, state, memory, live)
        return self.vocabulary(hidden), state, weights

    def advance(
        self, words: Tensor, state: State, memory: Memory, live: Tensor | None = None
    ) -> tuple[Tensor, State, Tensor]:
        """``step`` without the vocabulary layer: its input (R, H or, tied, D') in place of the logits."""
        images, hypotheses = words.shape

        def pick(tensor: Tensor) -> Tensor:  # (I, K, ...) -> (R, ...)
            rows = tensor.reshape(images * hypotheses, *tensor.shape[2:])
            return rows if live is None else rows.index_select(0, live)

        def spread(rows: Tensor) -> Tensor:  # (R, N) -> (I, K, N)
            if live is not None:
                rows = rows.new_zeros(images * hypotheses, rows.shape[1]).index_copy_(0, live, rows)
            return rows.view(images, hypotheses, -1)

        rows = [pick(tensor) for tensor in state.tensors]
        word = self._embed(pick(words))  # (R, D)
        below, *above = self._by_layer(rows)
        query, gate, hidden = self.recurrent(rows[0]).split(self._columns, 1)
        context, weights = self.attention(spread(query), memory.keys, memory.values, memory.mean)
        context = pick(context) * torch.sigmoid(gate)  # (R, E)
        rows = state = self.cell.combine(self.word(word) + self.context(context), hidden, below)
        for layer, own in zip(self.upper, above):
            state = layer.step(self.dropout(state[0]), own)
            rows = (*rows, *state)
        return self._output(state[0], context, word), State(tuple(spread(row) for row in rows)), weights

    def forward(self, features: Tensor, tokens: Tensor) -> TeacherForced:
        """Teacher forcing (Williams and Zipser 1989): predict every word from the true ones before it.

        Args:
            features: (I, P, C), any float dtype.
            tokens: (I, K, T + 1) int64 on any device: START, words, END, then PAD; captions of PAD alone fill up
                pictures that have fewer than K.

        Raises:
            ValueError: no caption has a token to predict.
        """
        hidden, weights, packing, _ = self.hidden(features, tokens)
        return TeacherForced(
            self.vocabulary(hidden), packing.targets, weights, packing.caption, packing.step, packing.shape
        )

    def hidden(
        self, features: Tensor, tokens: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Packing, Tensor | None]:
        """``forward`` without the vocabulary layer: its input (M, H or, tied, D'), attention weights (M, P), and the
        order of both.

        The last is (M,) int64, the positions that hard attention drew, -1 where it took the expected value; None where
        nothing was
        drawn: in eval mode, and with any other attention.

        Args:
            inputs: (I, K, T) int64 on any device, words that go in instead of ``tokens[..., :-1]``.
        """
        packing = Packing.of(tokens, self.vocabulary.weight.device, inputs)
        hidden, weights, positions = self.packed_hidden(features, packing)
        return hidden, weights, packing, positions

    def packed_hidden(self, features: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor | None]:
        """``hidden`` of captions that are packed already."""
        memory = self.encode(features).select(packing.image_order)
        word = self._embed(packing.inputs)  # (M, D)
        state, *above = self._by_layer(
            [tensor.index_select(0, packing.row_image) for tensor in self._initial(memory)]
        )  # (B, H) each
        recurrent = DeferredLinear(self.recurrent.weight, self.recurrent.bias, len(word), self._columns)
        entry = DeferredLinear(self.context.weight, self.word(word).to(word.dtype), len(word), self._columns[-1:])
        draws = self.training and isinstance(self.attention, HardAttention)
        expected = self.attention.expected(packing.steps[0], word.device) if draws else None
        outputs, contexts, attention, positions = [], [], [], []
        with torch.autocast(
            word.device.type, enabled=False
        ):  # the deferred products keep its dtype; what is left is small
            for step in packing.steps:
                state = [tensor[: step.rows] for tensor in state]
                query, gate, hidden = recurrent(state[0])
                context, weights, *drawn = self._attend(query, memory, step, expected)
                context = context * torch.sigmoid(gate)  # (B_t, E)
                (inputs,) = entry(context)
                state = self.cell.combine(inputs, hidden, state)
                outputs.append(state[0])
                contexts.append(context)
                attention.append(weights)
                positions += drawn
        h = torch.cat(outputs)  # (M, H)
        for layer, own in zip(self.upper, above):
            h = layer(self.dropout(h), own, [step.rows for step in packing.steps])
        hidden = self._output(h, torch.cat(contexts), word)
        return hidden, torch.cat(attention), torch.cat(positions) if positions else None

    def _embed(self, words: Tensor) -> Tensor:
        """Words (N,) int64 -> (N, D)."""
        vectors = self.embedding(words)
        return self.dropout(self.embedding_map(vectors).to(vectors.dtype))

    def _by_layer(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The tensors of a state, those of each layer apart."""
        return [tensors[first : first + self.cell.states] for first in range(0, len(tensors), self.cell.states)]

    def _initial(self, memory: Memory) -> Sequence[Tensor]:
        """The first state of all layers for each picture, (I, H) tensors."""
        return torch.tanh(self.initial(memory.mean).to(memory.mean.dtype)).split(self.config.hidden_size, 1)

    def _attend(self, query: Tensor, memory: Memory, step: PackedStep, expected: Tensor | None) -> Sequence[Tensor]:
        """Query (B_t, A) -> context (B_t, E), weights (B_t, P) and, where something is drawn, positions (B_t,).

        Empty slots of the block cost a little and never come back. ``expected`` is of the first step's block, of which
        every other is a corner.
        """
        block = step.images * step.slots
        if step.place is not None:
            query = query.new_zeros(block, query.shape[1]).index_copy(0, step.place, query)
        part, query = memory.first(step.images), query.reshape(step.images, step.slots, -1)
        if expected is None:
            found = self.attention(query, part.keys, part.values, part.mean)
        else:
            found = self.attention.draw(query, part.keys, part.values, expected[: step.images, : step.slots])
        rows = [tensor.reshape(block, *tensor.shape[2:]) for tensor in found]
        return rows if step.place is None else [tensor.index_select(0, step.place) for tensor in rows]

    def _output(self, h: Tensor, context: Tensor, word: Tensor) -> Tensor:
        """The vocabulary layer's input from the last layer's h (M, H), gated context (M, E) and word (M, D).

        It is (M, H), with tied weights (M, size of a word vector).
        """
        output = self.dropout(h + self.output_context(context) + self.output_word(word))
        return self.output_map(output).to(output.dtype)


def _map(size: int, wanted: int) -> nn.Module:
    """A learned matrix from one size to another; nothing where they are the same."""
    return nn.Identity() if size == wanted else nn.Linear(size, wanted, bias=False)
