"""Scheduled sampling (Bengio et al. 2015): some inputs in training are the decoder's own words, as in captioning.

Two passes. The first, here, has no gradient and decides the inputs. The second is teacher forcing as usual with those
inputs; the targets stay the caption itself. (So no gradient goes through a draw, as in the paper.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.decoder import Decoder
from captioner.decoder.categorical import draw_words
from captioner.training.objectives.sampling import NEVER_DRAWN
from captioner.vocabulary.vocabulary import PAD


@torch.no_grad()
def mix_inputs(decoder: Decoder, features: Tensor, inputs: Tensor, share: float) -> Tensor:
    """Inputs in which each word but START is replaced, with probability ``share``, by one that the decoder draws.

    The draw is from the decoder's distribution at the step before, after the inputs so far, drawn ones among them. The
    decoder is in eval mode meanwhile (its distribution when it captions) and draws all words but ``NEVER_DRAWN``, as in
    self-critical training. END may be drawn before a caption's end; it is an input like any word, as in the paper.

    Args:
        features: (I, P, C) on the decoder's device.
        inputs: (I, K, T) int64 on the CPU: START, words, then PAD.
        share: in 0..1.

    Returns:
        The mixed inputs, (I, K, T) int64 on the decoder's device.
    """
    coins = (torch.rand(inputs.shape) < share) & (inputs != PAD)  # torch's global generator of the CPU
    coins[..., 0] = False  # START
    steps = coins.any(0).any(0).nonzero().flatten().tolist()  # steps at which a word is drawn
    inputs, coins = inputs.to(features.device), coins.to(features.device)
    if not steps:
        return inputs
    was_training = decoder.training
    decoder.eval()
    memory = decoder.encode(features)
    state = decoder.initial_state(memory, inputs.shape[1])
    columns = list(inputs.unbind(2))
    for step in range(1, steps[-1] + 1):
        logits, state, _ = decoder.step(columns[step - 1], state, memory)  # (I, K, V)
        logits[..., NEVER_DRAWN] = -math.inf
        columns[step] = torch.where(coins[..., step], draw_words(logits).squeeze(-1), columns[step])
    decoder.train(was_training)
    return torch.stack(columns, 2)
