"""Beam search: images/s of the batched search and of two loops over one image at a time, and whether the captions are
the same.

    python -m benchmarks.beam                     # vocabulary 9,500, beam 5, features 49x2048, hidden 512
    python -m benchmarks.beam --images 16 --loop-images 4 --repeats 1

The decoder has random weights. Its logits are scaled to the entropy of a trained decoder's, and END gets a bias that
gives captions of ordinary length. Without both, every search would run to the longest caption.
"""

from __future__ import annotations

from typing import cast

import click
import torch
from torch import Tensor, nn

from benchmarks.beam_loops import cached_loop, textbook_loop
from benchmarks.report import measure, print_results, result
from captioner.decoder import DecoderConfig, build_decoder
from captioner.decoder.protocol import Decoder, Memory, State
from captioner.search import beam_search
from captioner.vocabulary.vocabulary import END

_SHARPNESS = 60.0  # entropy of some 2.6 nats a token, as of trained captioners
_WORDS, _LONGEST = 10, 20  # of a caption
_COMPARED = 64  # images whose captions are compared with the cached loop's
_NEAR = 1e-4  # captions may differ where their float32 scores are this close


class SharpDecoder(nn.Module):
    """A decoder whose logits are scaled by ``sharpness``, with ``end`` added to that of END."""

    def __init__(self, decoder: nn.Module, sharpness: float) -> None:
        super().__init__()
        self.decoder = cast(Decoder, decoder)
        self.sharpness, self.end = sharpness, 0.0

    def encode(self, features: Tensor) -> Memory:
        return self.decoder.encode(features)

    def initial_state(self, memory: Memory, beams: int) -> State:
        return self.decoder.initial_state(memory, beams)

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State, Tensor]:
        logits, state, weights = self.decoder.step(tokens, state, memory)
        return self._sharpen(logits), state, weights

    def forward(self, memory: Memory, tokens: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, weights = self.decoder(memory, tokens, index)
        return self._sharpen(logits), weights

    def _sharpen(self, logits: Tensor) -> Tensor:
        logits.mul_(self.sharpness)
        logits[..., END] += self.end
        return logits


def make_decoder(vocabulary: int, channels: int, hidden: int, beam: int) -> SharpDecoder:
    """A GRU decoder with seeded random weights whose captions have some 10 words."""
    torch.manual_seed(0)
    config = DecoderConfig(
        decoder="gru",
        attention="soft",
        vocabulary_size=vocabulary,
        embedding_size=50,
        channels=channels,
        positions=49,
        feature_size=256,
        hidden_size=hidden,
        attention_size=256,
    )
    decoder = SharpDecoder(build_decoder(config, torch.randn(vocabulary, 50) * 0.4), _SHARPNESS).eval()
    features = torch.randn(16, 49, channels).relu()
    low, high = -30.0, 120.0
    for _ in range(12):
        decoder.end = (low + high) / 2
        captions = beam_search(decoder, features, beam, max_length=_LONGEST)
        words = sum(len(best.tokens) for [best] in captions) / len(captions)
        low, high = (decoder.end, high) if words > _WORDS else (low, decoder.end)
    return decoder


def agreement(decoder: Decoder, features: Tensor, beam_size: int) -> tuple[int, int, float]:
    """How often the captions of the batched search and of the cached loop differ.

    Returns:
        Captions that differ, those of them whose scores differ by more than 1e-4, mean words of a caption.
    """
    ours = beam_search(decoder, features, beam_size, max_length=_LONGEST)
    theirs = cached_loop(decoder, features, beam_size, _LONGEST)
    differ = [(a.score, score) for [a], (tokens, score) in zip(ours, theirs, strict=True) if a.tokens != tokens]
    return len(differ), sum(abs(a - b) > _NEAR for a, b in differ), sum(len(a.tokens) for [a] in ours) / len(ours)


@click.command(help=__doc__)
@click.option("--images", default=128, help="images in the batch")
@click.option("--vocabulary", default=9500)
@click.option("--channels", default=2048)
@click.option("--hidden", default=512)
@click.option("--beam", default=5)
@click.option("--repeats", default=5)
@click.option("--loop-images", default=16, help="images in each round of the loops")
def main(images: int, vocabulary: int, channels: int, hidden: int, beam: int, repeats: int, loop_images: int) -> None:
    torch.manual_seed(1)
    features = torch.randn(images, 49, channels).relu()
    decoder = make_decoder(vocabulary, channels, hidden, beam)
    rates = measure(
        {
            "batched": lambda: len(beam_search(decoder, features, beam, max_length=_LONGEST)),
            "cached": lambda: len(cached_loop(decoder, features[:loop_images], beam, _LONGEST)),
            "textbook": lambda: len(textbook_loop(decoder, features[:loop_images], beam, _LONGEST)),
        },
        repeats,
    )
    single = agreement(decoder, features[:_COMPARED], beam)
    double = agreement(decoder.double(), features[:_COMPARED].double(), beam)
    facts = {
        "threads": torch.get_num_threads(),
        "images": images,
        "vocabulary": vocabulary,
        "beam": beam,
        "words": round(single[2], 2),
    }
    same = {"float64_differ": double[0], "float32_differ": single[0], "float32_differ_beyond_1e-4": single[1]}
    print_results(
        [
            result(
                "beam: batched / cached loop",
                rates["batched"],
                rates["cached"],
                4.0,
                "images/s",
                **facts,
                **same,
            ),
            result(
                "beam: batched / textbook loop",
                rates["batched"],
                rates["textbook"],
                10.0,
                "images/s",
                **facts,
            ),
        ]
    )


if __name__ == "__main__":
    main()
