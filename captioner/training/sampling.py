"""Captions drawn from a decoder, all pictures and samples of a batch together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder
from captioner.decoder.draws import draw
from captioner.vocabulary.vocabulary import END, PAD, START, UNK

NEVER_DRAWN = (PAD, START, UNK)  # as in evaluation; the other words' probabilities are scaled up to a sum of 1


@torch.no_grad()
def sample_captions(
    decoder: CaptionDecoder, features: Tensor, samples: int, max_length: int, greedy: bool = False
) -> Tensor:
    """Draw captions word by word from the decoder's distribution over all words but ``NEVER_DRAWN``.

    The random numbers are those of torch's global generator of the device, one a word. The decoder is used as it is: in
    eval mode the captions are of the distribution that teacher forcing in eval mode has.

    Args:
        features: (I, P, C) on the decoder's device.
        samples: S, captions drawn for each picture.
        max_length: words of the longest caption; one that gets so far ends without END.
        greedy: also take the likeliest word at every step, in one more caption, the last of each picture.

    Returns:
        Tokens (I, K, T + 1) int64 on the device, K = S + greedy: START, words, END where there is one, then PAD, T <=
        max_length.
    """
    memory = decoder.encode(features)
    images, captions = len(features), samples + greedy
    state = decoder.start(memory, 1)  # all captions begin alike: one is enough for the first step
    words = torch.full((images, 1), START, dtype=torch.int64, device=features.device)
    columns = [words.expand(-1, captions)]
    live = None  # (R,) captions that go on, numbered image * K + k
    for _ in range(max_length):
        logits, state, _ = decoder.step(words, state, memory, live)  # (R, V)
        logits[:, NEVER_DRAWN] = -math.inf
        drawn = draw_words(logits, captions if live is None else 1).flatten()
        if live is None:
            state = state.select(words.new_zeros(images, captions))
            live = torch.arange(images * captions, device=features.device)
        if greedy:
            best = logits.argmax(-1).repeat_interleave(
                len(live) // len(logits)
            )  # one row for all captions of a picture at first
            drawn = torch.where(live % captions == samples, best, drawn)
        words = torch.full((images * captions,), PAD, dtype=torch.int64, device=features.device).index_copy_(
            0, live, drawn
        )
        live = live[drawn != END]
        words = words.view(images, captions)
        columns.append(words)
        if not len(live):
            break
    return torch.stack(columns, dim=2)


def draw_words(logits: Tensor, count: int) -> Tensor:
    """``count`` words a row, (R, V) -> (R, count).

    torch.multinomial draws V random numbers a row, which takes longer than all the rest at V = 9,500.
    """
    passed = logits.softmax(-1)  # (R, V)
    # a CPU adds in float64 whatever it stores, and storing that costs eight times as much; a GPU adds in what it stores
    passed = passed.cumsum(-1) if passed.device.type == "cpu" else passed.cumsum(-1, dtype=torch.float64)
    return draw(passed, count)
