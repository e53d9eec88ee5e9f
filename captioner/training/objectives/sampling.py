"""Captions drawn from a decoder, all images and samples of a batch together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.decoder import Decoder
from captioner.decoder.categorical import draw_words
from captioner.vocabulary.vocabulary import END, PAD, START, UNK

NEVER_DRAWN = (PAD, START, UNK)  # as in evaluation; the probabilities of the other words are scaled up to a sum of 1


@torch.no_grad()
def sample_captions(decoder: Decoder, features: Tensor, samples: int, max_length: int, greedy: bool = False) -> Tensor:
    """Draw captions word by word from the decoder's distribution over all words but ``NEVER_DRAWN``.

    The random numbers are those of torch's global generator of the device. The decoder is used as it is: in eval mode
    the captions have the distribution that teacher forcing in eval mode has.

    Args:
        features: (I, P, C) on the decoder's device.
        samples: S, captions drawn for each image.
        max_length: words of the longest caption; one that gets so far ends without END.
        greedy: also take the most probable word at every step, in one more caption, the last of each image.

    Returns:
        Tokens (I, K, T + 1) int64 on the device, K = S + greedy: START, words, END where there is one, then PAD,
        T <= max_length.
    """
    memory = decoder.encode(features)
    captions = samples + greedy
    state = decoder.initial_state(memory, captions)
    tokens = torch.full((len(features), captions), START, dtype=torch.int64, device=features.device)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    columns = [tokens]
    for _ in range(max_length):
        logits, state, _ = decoder.step(tokens, state, memory)  # (I, K, V)
        logits[..., NEVER_DRAWN] = -math.inf
        tokens = draw_words(logits).squeeze(-1)
        if greedy:
            tokens[:, -1] = logits[:, -1].argmax(-1)
        tokens = tokens.masked_fill(ended, PAD)
        ended = ended | (tokens == END)
        columns.append(tokens)
        if ended.all():
            break
    return torch.stack(columns, dim=2)
