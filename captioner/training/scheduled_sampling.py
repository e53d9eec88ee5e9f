"""Scheduled sampling (Bengio et al. 2015): in training some words that go in are the decoder's own, as they are when it
captions.

Two passes. The first, here, has no gradient: it decides the words that go in. The second is teacher forcing as usual
with those words; what is to be predicted stays the caption itself. (So no gradient goes through a draw, as in the
paper.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.device import to_device
from captioner.training.sampling import NEVER_DRAWN, draw_words
from captioner.vocabulary.vocabulary import PAD


@torch.no_grad()
def mix_inputs(decoder: CaptionDecoder, features: Tensor, tokens: Tensor, share: float) -> Tensor:
    """Captions in which each word but START has been replaced, with probability ``share``, by one that the decoder
    draws.

    The draw is from the decoder's distribution at the step before, after the words that went in so far, drawn ones
    among them. The decoder is in eval mode meanwhile (the distribution is the one it has when it captions) and draws
    all words but ``NEVER_DRAWN``, as in self-critical training. END may be drawn before a caption's end; it goes in
    like any word, as in the paper.

    Coins are of torch's global generator of the CPU, all at once, and the draws of that of the device. Nothing is
    computed of a caption after its last coin, and no logits where there is none.

    Args:
        features: (I, P, C) on the decoder's device.
        tokens: (I, K, T + 1) int64 on the CPU: START, words, END, then PAD.
        share: in 0..1.

    Returns:
        The words that go in, (I, K, T) int64 on the device, where ``tokens[..., :-1]`` went in before.
    """
    images, captions, width = tokens.shape
    coins = (torch.rand(images, captions, width - 1) < share) & (
        tokens[..., 1:] != PAD
    )  # the last word, END, does not go in
    coins[..., 0] = False  # START
    table, coins = tokens[..., :-1].reshape(images * captions, -1).numpy(), coins.view(images * captions, -1).numpy()
    needed = np.logical_or.accumulate(coins[:, ::-1], 1)[:, ::-1]  # a coin here or later
    live = [np.flatnonzero(column) for column in needed.T[1:] if column.any()]  # captions of each step
    rows = [
        np.flatnonzero(coins[captions_of_step, place]) for place, captions_of_step in enumerate(live, 1)
    ]  # of them, which draw
    arrays = [table.reshape(-1), NEVER_DRAWN, *live, *rows]
    together = to_device(np.concatenate(arrays, dtype=np.int64), features.device)  # one copy
    inputs, banned, *indices = together.split([len(array) for array in arrays])
    inputs = inputs.view(images, captions, width - 1)
    if not live:
        return inputs
    was_training = decoder.training
    decoder.eval()
    memory = decoder.encode(features)
    state = decoder.start(memory, captions)
    for place, (running, drawing) in enumerate(zip(indices[: len(live)], indices[len(live) :]), 1):
        hidden, state, _ = decoder.advance(inputs[..., place - 1], state, memory, running)
        if len(drawing):
            logits = decoder.vocabulary(hidden[drawing]).index_fill_(1, banned, -math.inf)  # (R, V)
            inputs.view(images * captions, -1)[running[drawing], place] = draw_words(logits, 1).squeeze(1)
    decoder.train(was_training)
    return inputs
