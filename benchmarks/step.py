"""One training step of the soft-attention LSTM, against a textbook loop and against the ceiling that its large products
set.

    python -m benchmarks.step [--threads N] [--repeats R] [--profile fp32|bf16]

Both decoders see the same 80 captions of 16 pictures: 49x2048 features, a vocabulary of 9,500 words, 512 hidden units,
lengths of 9 to 19 words. The ceiling is the vocabulary layer with its loss, the feature projection and the optimiser
alone, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click
import torch
from torch import Tensor

from benchmarks.report import measure, print_results, result
from benchmarks.textbook_decoder import TextbookDecoder, textbook_step
from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.decoder.packing import Packing
from captioner.device import prepare_device
from captioner.parameters import TrainParameters
from captioner.training.optimizers import build_optimizer, set_rates
from captioner.training.step import training_step
from captioner.training.vocabulary_loss import vocabulary_loss
from captioner.vocabulary.vocabulary import END, START

TEXTBOOK_TARGET, CEILING_TARGET = 5.0, 0.5
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Sizes:
    """What the issue of the benchmark fixes."""

    images: int = 16
    captions: int = 5
    positions: int = 49
    channels: int = 2048
    vocabulary: int = 9500
    hidden: int = 512
    shortest: int = 9
    longest: int = 19


def make_batch(sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (I, P, C) float16 and tokens (I, K, T + 1), always the same."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(sizes.images, sizes.positions, sizes.channels, generator=generator).half()
    tokens = torch.zeros(sizes.images, sizes.captions, sizes.longest + 2, dtype=torch.int64)
    lengths = torch.randint(sizes.shortest, sizes.longest + 1, (sizes.images, sizes.captions), generator=generator)
    for row, length in zip(tokens.flatten(0, 1), lengths.flatten().tolist()):
        row[0], row[length + 1] = START, END
        row[1 : length + 1] = torch.randint(4, sizes.vocabulary, (length,), generator=generator)
    return features.to(device), tokens


def our_step(sizes: Sizes, device: torch.device, precision: str) -> tuple[Callable[[], int], Decoder]:
    """The program's own training step; the function returns how many captions it did."""
    torch.manual_seed(0)
    options = TrainParameters(hidden_size=sizes.hidden, precision=precision)
    config = DecoderConfig(
        "lstm",
        "soft",
        sizes.vocabulary,
        50,
        sizes.channels,
        sizes.positions,
        options.feature_size,
        options.hidden_size,
        options.attention_size,
    )
    decoder = build_decoder(config).to(device).train()
    optimizer = build_optimizer(decoder, options)
    set_rates(optimizer, (options.learning_rate, options.projection_learning_rate))
    features, tokens = make_batch(sizes, device)

    def step() -> int:
        total, _ = training_step(decoder, optimizer, [(features, tokens)], options)
        total.item()
        return sizes.images * sizes.captions

    return step, decoder


def textbook(sizes: Sizes, device: torch.device) -> Callable[[], int]:
    """The textbook loop on the same batch, default Adam."""
    torch.manual_seed(0)
    options = TrainParameters()
    decoder = (
        TextbookDecoder(sizes.vocabulary, 50, sizes.channels, sizes.hidden, options.attention_size).to(device).train()
    )
    optimizer = torch.optim.Adam([parameter for parameter in decoder.parameters() if parameter.requires_grad])
    features, tokens = make_batch(sizes, device)
    tokens = tokens.to(device)

    def step() -> int:
        textbook_step(decoder, optimizer, features, tokens).item()
        return sizes.images * sizes.captions

    return step


def ceiling(sizes: Sizes, device: torch.device, precision: str) -> Callable[[], int]:
    """Vocabulary layer and loss over the real tokens, feature projection, and the optimiser over every parameter, in
    the same precision."""
    options = TrainParameters(hidden_size=sizes.hidden)
    _, decoder = our_step(sizes, device, precision)
    optimizer = build_optimizer(decoder, options)
    set_rates(optimizer, (options.learning_rate, options.projection_learning_rate))
    features, tokens = make_batch(sizes, device)
    targets = Packing.of(tokens, device).targets
    hidden = torch.randn(len(targets), sizes.hidden, device=device, requires_grad=True)
    upstream = torch.randn(sizes.images, sizes.positions, options.feature_size, device=device)
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def step() -> int:
        for layer in (decoder.vocabulary, decoder.projection):
            layer.zero_grad(set_to_none=True)
        hidden.grad = None
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            values = decoder.projection(features.float()).float()
            loss, _ = vocabulary_loss(decoder.vocabulary, hidden, targets, 1 / len(targets))
        torch.autograd.backward([loss, values], [None, upstream])
        optimizer.step()
        loss.item()
        return sizes.images * sizes.captions

    return step


def run(sizes: Sizes, device: torch.device, repeats: int) -> list[dict]:
    """Measure all of them in turn, ours and the ceiling in both precisions; the textbook loop knows only fp32."""
    steps = {"textbook": textbook(sizes, device)}
    for precision in PRECISIONS:
        steps[f"ours {precision}"], _ = our_step(sizes, device, precision)
        steps[f"ceiling {precision}"] = ceiling(sizes, device, precision)
    rates = measure(steps, repeats)
    facts = {"threads": torch.get_num_threads(), "device": str(device)}
    rows = []
    for precision in PRECISIONS:
        ours, highest = rates[f"ours {precision}"], rates[f"ceiling {precision}"]
        rows.append(
            result(
                f"training step {precision} / textbook loop fp32",
                ours,
                rates["textbook"],
                TEXTBOOK_TARGET,
                "captions/s",
                **facts,
            )
        )
        rows.append(
            result(
                f"training step {precision} / ceiling {precision}", ours, highest, CEILING_TARGET, "captions/s", **facts
            )
        )
    # What bf16 brings against a ceiling that stands still: its own rises with it, for the ceiling is products and
    # nothing else.
    rows.append(
        result(
            "training step bf16 / ceiling fp32",
            rates["ours bf16"],
            rates["ceiling fp32"],
            CEILING_TARGET,
            "captions/s",
            **facts,
        )
    )
    return rows


def profile(sizes: Sizes, device: torch.device, precision: str, steps: int = 10) -> str:
    """Where a step's time goes, as torch.profiler's table of operators by their own time."""
    step, _ = our_step(sizes, device, precision)
    step()
    activities = [torch.profiler.ProfilerActivity.CPU] + (
        [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    )
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
    return profiler.key_averages().table(
        sort_by="self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total",
        row_limit=25,
        max_name_column_width=50,
    )


@click.command(help=__doc__)
@click.option("--threads", default=0, help="threads of arithmetic; 0: all cores")
@click.option("--repeats", default=7, help="rounds")
@click.option("--device", default="cpu")
@click.option(
    "--profile", "profiled", type=click.Choice(PRECISIONS), help="also print where the time goes in this precision"
)
@click.option("--small", is_flag=True, help="tiny sizes, to try the benchmark itself")
def main(threads: int, repeats: int, device: str, profiled: str | None, small: bool) -> None:
    chosen = prepare_device(device, threads)
    sizes = Sizes(4, 2, 9, 32, 50, 16, 3, 6) if small else Sizes()
    if profiled:
        print(profile(sizes, chosen, profiled))
    print_results(run(sizes, chosen, repeats))


if __name__ == "__main__":
    main()
