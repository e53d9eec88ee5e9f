"""Beam search: pictures a second of the batched search against two one-picture loops, and whether the captions are the
same.

    python -m benchmarks.beam                     # vocabulary 9,500, beam 5, features 49x2048, hidden 512
    python -m benchmarks.beam --images 16 --loop-images 4 --repeats 1

The decoder has random weights, made as sharp as trained ones and with an <end> as likely as gives captions of ordinary
length: with weights as they are drawn every search would run to the longest caption.
"""

from __future__ import annotations

import click
import torch
from torch import Tensor

from benchmarks.beam_loops import cached_loop, textbook_loop
from benchmarks.report import measure, print_results, result
from captioner.decoder import CaptionDecoder, DecoderConfig, build_decoder
from captioner.search import beam_search
from captioner.vocabulary.vocabulary import END

_SHARPNESS = 60.0  # entropy of some 2.6 nats a word, as of trained captioners
_WORDS, _LONGEST = 10, 20  # of a caption
_COMPARED = 64  # pictures whose captions are compared with the cached loop's
_NEAR = 1e-4  # two float32 scores this near may change places


def make_decoder(vocabulary: int, channels: int, hidden: int, beam: int) -> CaptionDecoder:
    """A GRU decoder with seeded random weights whose captions have some 10 words."""
    torch.manual_seed(0)
    config = DecoderConfig(
        "gru", "soft", vocabulary, 50, channels, 49, feature_size=256, hidden_size=hidden, attention_size=256
    )
    decoder = build_decoder(config, torch.randn(vocabulary, 50) * 0.4).eval()
    features = torch.randn(16, 49, channels).relu()
    low, high = -30.0, 120.0
    with torch.no_grad():
        decoder.vocabulary.weight.mul_(_SHARPNESS)
        for _ in range(12):
            decoder.vocabulary.bias[END] = (low + high) / 2
            words = sum(len(best.tokens) for [best] in beam_search(decoder, features, beam, max_length=_LONGEST)) / len(
                features
            )
            low, high = ((low + high) / 2, high) if words > _WORDS else (low, (low + high) / 2)
    return decoder


def agreement(decoder: CaptionDecoder, features: Tensor, beam_size: int) -> tuple[int, int, float]:
    """How often the batched search and the cached loop give other words.

    Returns:
        Captions that differ, those of them whose scores are not within 1e-4, mean words of a caption.
    """
    ours = beam_search(decoder, features, beam_size, max_length=_LONGEST)
    theirs = cached_loop(decoder, features, beam_size, _LONGEST)
    differ = [(a.score, score) for [a], (words, score) in zip(ours, theirs, strict=True) if a.tokens != words]
    return len(differ), sum(abs(a - b) > _NEAR for a, b in differ), sum(len(a.tokens) for [a] in ours) / len(ours)


@click.command(help=__doc__)
@click.option("--images", default=128, help="pictures in the batch")
@click.option("--vocabulary", default=9500)
@click.option("--channels", default=2048)
@click.option("--hidden", default=512)
@click.option("--beam", default=5)
@click.option("--repeats", default=5)
@click.option("--loop-images", default=16, help="pictures in each round of the loops")
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
                "beam: batched / cached one-picture loop",
                rates["batched"],
                rates["cached"],
                4.0,
                "images/s",
                **facts,
                **same,
            ),
            result(
                "beam: batched / textbook one-picture loop",
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
