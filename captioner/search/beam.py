"""Beam search: the K most likely continuations go on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.decoder.protocol import Decoder
from captioner.search.constraints import Constraints
from captioner.search.engine import Frontier, search
from captioner.search.hypothesis import Hypothesis

_BLOCK = 128  # tokens in a block of the two-stage top-K; near sqrt(V) for vocabularies of some 10,000 words


class BeamStrategy:
    """The K most likely continuations of all hypotheses of an image.

    Args:
        beam_size: K.
    """

    groups = 1

    def __init__(self, beam_size: int) -> None:
        self.beam_size = beam_size

    def choose(self, logits: Tensor, offsets: Tensor, frontier: Frontier) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Strategy``. The log-probabilities fall."""
        vocabulary = logits.shape[2]
        if vocabulary >= 4 * _BLOCK and self.beam_size <= vocabulary // _BLOCK:
            totals, index = _top_of_blocks(logits, offsets, self.beam_size)
        else:
            totals, index = _top((logits + offsets.unsqueeze(2)).flatten(1), self.beam_size)
        return totals, index.div(vocabulary, rounding_mode="floor"), index.remainder(vocabulary)


def _top(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Top-K of each row (J, N) and its indices. Where N < ``size``, minus infinity and index 0 fill the rest."""
    totals, index = scores.topk(min(size, scores.shape[1]), dim=1)
    missing = size - totals.shape[1]
    if missing:
        totals = torch.nn.functional.pad(totals, (0, missing), value=-math.inf)
        index = torch.nn.functional.pad(index, (0, missing))
    return totals, index


def _top_of_blocks(logits: Tensor, offsets: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The ``size`` best of each image's (K', V) in two stages, without the sum (J, K', V) of logits and offsets.

    The best ``size`` tokens lie in the ``size`` blocks with the largest maxima. A maximum over V is a fast pass over
    memory, while a top-K over V sorts. Here only some V / 128 maxima are sorted, then 128 tokens a chosen block.

    Args:
        logits: (J, K', V).
        offsets: (J, K'), added to the logits.

    Returns:
        Totals (J, size) in falling order, and their indices (J, size) in the flattened (K' * V).
    """
    vocabulary = logits.shape[2]
    full = vocabulary // _BLOCK * _BLOCK
    maxima = logits[..., :full].unflatten(2, (-1, _BLOCK)).amax(3)  # (J, K', blocks)
    if full < vocabulary:
        maxima = torch.cat([maxima, logits[..., full:].amax(2, keepdim=True)], dim=2)
    blocks = maxima.shape[2]
    chosen = (maxima + offsets.unsqueeze(2)).flatten(1).topk(size, dim=1).indices  # (J, size) in K' * blocks
    parents = chosen.div(blocks, rounding_mode="floor")
    in_block = torch.arange(_BLOCK, device=logits.device)
    tokens = (chosen.remainder(blocks) * _BLOCK).unsqueeze(2) + in_block  # (J, size, 128)
    beyond = tokens >= vocabulary  # the last block may be shorter
    index = (parents.unsqueeze(2) * vocabulary + tokens.clamp(max=vocabulary - 1)).flatten(1)  # (J, size * 128)
    scores = logits.flatten(1).gather(1, index).view_as(tokens) + offsets.gather(1, parents).unsqueeze(2)
    totals, best = scores.masked_fill(beyond, -math.inf).flatten(1).topk(size, dim=1)
    return totals, index.gather(1, best)


@torch.no_grad()
def beam_search(
    decoder: Decoder,
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
    """Captions of images by beam search; ``beam_size=1`` is greedy search.

    Args:
        decoder: anything with the methods of ``protocol.Decoder``, in eval mode.
        features: (I, P, C), on the decoder's device.
        beam_size: hypotheses of each image, finished ones included.
        max_length, min_length: words of a caption, START and END not counted.
        length_normalisation: the log-probability of a finished hypothesis is divided by its length (words and END) to
            this power; 0 is the plain sum.
        no_repeat_ngram: no n-gram of this size occurs twice in a caption; 0: allowed.
        prefix: token ids that every caption begins with; see ``constraints.prefix_words``.
        keep: hypotheses returned for each image, at most ``beam_size``.
        attention: also return the attention weights.

    Returns:
        For each image 1 to ``keep`` hypotheses, best score first.

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
