"""Beam search: which K continuations go on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.search.constraints import Constraints
from captioner.search.engine import Frontier, search
from captioner.search.hypothesis import Hypothesis
from captioner.search.protocol import StepDecoder

_BLOCK = 128  # words a block in the two-stage top-K; near sqrt(V) for vocabularies of some 10,000 words


class BeamStrategy:
    """The K likeliest of all continuations of a picture's hypotheses.

    Args:
        beam_size: K.
    """

    groups = 1

    def __init__(self, beam_size: int) -> None:
        self.beam_size = beam_size

    def choose(self, logits: Tensor, offsets: Tensor, frontier: Frontier) -> tuple[Tensor, Tensor, Tensor]:
        """As ``Strategy`` says; the log-probabilities fall."""
        numbers, shape = frontier.numbers, frontier.shape
        vocabulary = logits.shape[1]
        if vocabulary >= 4 * _BLOCK and self.beam_size <= vocabulary // _BLOCK:
            totals, flat = _top_of_blocks(logits, offsets, numbers, shape, self.beam_size)
        else:
            totals, flat = _top(spread(logits + offsets.unsqueeze(1), numbers, shape).flatten(1), self.beam_size)
        return totals, flat.div(vocabulary, rounding_mode="floor"), flat.remainder(vocabulary)


def spread(rows: Tensor, numbers: Tensor, shape: tuple[int, int], empty: float = -math.inf) -> Tensor:
    """Rows (R, ...) at their places ``numbers`` in (J, K', ...), ``empty`` at the others."""
    if len(rows) < math.prod(shape):
        rows = rows.new_full((math.prod(shape), *rows.shape[1:]), empty).index_copy_(0, numbers, rows)
    return rows.unflatten(0, shape)


def _top(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The ``size`` largest of each row (J, N) with their places, filled up with minus infinity at place 0."""
    totals, places = scores.topk(min(size, scores.shape[-1]), dim=-1)
    missing = size - totals.shape[-1]
    if missing:
        totals = torch.nn.functional.pad(totals, (0, missing), value=-math.inf)
        places = torch.nn.functional.pad(places, (0, missing))
    return totals, places


def _top_of_blocks(
    logits: Tensor, offsets: Tensor, numbers: Tensor, shape: tuple[int, int], size: int
) -> tuple[Tensor, Tensor]:
    """The ``size`` best of each picture's (K', V) in two stages, without a (J, K', V) tensor.

    The best ``size`` words lie in the ``size`` blocks with the largest maxima. A maximum over V is a fast pass over
    memory, where a top-K over V sorts; what is sorted here is some V / 128 maxima, then 128 words a chosen block.

    Returns:
        Totals (J, size) in falling order and places (J, size) in the flattened (K' * V).
    """
    vocabulary = logits.shape[1]
    whole = vocabulary // _BLOCK
    maxima = logits[:, : whole * _BLOCK].unflatten(1, (whole, _BLOCK)).amax(2)  # (R, whole)
    if whole * _BLOCK < vocabulary:
        maxima = torch.cat([maxima, logits[:, whole * _BLOCK :].amax(1, keepdim=True)], dim=1)
    blocks = maxima.shape[1]
    _, chosen = (
        spread(maxima + offsets.unsqueeze(1), numbers, shape).flatten(1).topk(size, dim=1)
    )  # (J, size) in K' * blocks
    parents = chosen.div(blocks, rounding_mode="floor")
    words = (chosen.remainder(blocks) * _BLOCK).unsqueeze(2) + torch.arange(
        _BLOCK, device=logits.device
    )  # (J, size, 128)
    beyond = words >= vocabulary
    words = words.clamp(max=vocabulary - 1)
    rows = numbers.new_zeros(math.prod(shape)).index_copy_(
        0, numbers, torch.arange(len(numbers), device=logits.device)
    )  # in R; 0 for the others
    row = rows.view(shape).gather(1, parents)  # (J, size)
    scores = logits.reshape(-1)[row.unsqueeze(2) * vocabulary + words]
    scores = (scores + spread(offsets, numbers, shape).gather(1, parents).unsqueeze(2)).masked_fill(beyond, -math.inf)
    totals, best = scores.flatten(1).topk(size, dim=1)
    return totals, (parents.unsqueeze(2) * vocabulary + words).flatten(1).gather(1, best)


@torch.no_grad()
def beam_search(
    decoder: StepDecoder,
    features: Tensor,
    beam_size: int = 5,
    max_length: int = 30,
    min_length: int = 1,
    length_normalisation: float = 1.0,
    no_repeat_ngram: int = 0,
    prefix: tuple[int, ...] = (),
    keep: int = 1,
    attention: bool = False,
) -> list[list[Hypothesis]]:
    """Captions of pictures by beam search; ``beam_size=1`` is greedy search.

    Args:
        decoder: anything with the methods of ``StepDecoder``, in eval mode.
        features: (I, P, C), on the decoder's device.
        beam_size: hypotheses a picture, finished ones included.
        max_length, min_length: words of a caption without <start> and <end>.
        length_normalisation: a finished hypothesis' log-probability is divided by its length (words and <end>) to this
            power; 0 is the plain sum.
        no_repeat_ngram: no n-gram of this size twice in a caption; 0: allowed.
        prefix: word ids that every caption begins with; see ``constraints.prefix_words``.
        keep: hypotheses returned for each picture, at most beam_size.
        attention: also return the attention weights.

    Returns:
        For each picture 1 to ``keep`` hypotheses, best score first.

    Raises:
        CaptionerError: no caption meets the constraints, or the decoder gives values that are not finite.
    """
    return search(
        decoder,
        decoder.encode(features),
        len(features),
        BeamStrategy(beam_size),
        Constraints(max_length, min_length, no_repeat_ngram, prefix),
        length_normalisation=length_normalisation,
        keep=keep,
        attention=attention,
        device=features.device,
    )
