"""The training step of commit 9449df8 or one like it, for ``benchmarks.step --before``; runs with that commit's package.

python older_step.py PRECISION THREADS SIZES    batches on standard input, then a line for each round
"""

from __future__ import annotations

import ast
import sys

import torch
from captioner.training.step import training_step

from captioner.decoder import DecoderConfig, build_decoder
from captioner.device import prepare_device
from captioner.parameters import TrainParameters
from captioner.training.optimizers import build_optimizer, set_rates


def main() -> None:
    precision, threads, sizes = sys.argv[1], int(sys.argv[2]), ast.literal_eval(sys.argv[3])
    prepare_device("cpu", threads)
    batches = torch.load(sys.argv[4], weights_only=True)
    torch.manual_seed(0)
    options = TrainParameters(hidden_size=sizes["hidden"], precision=precision)
    decoder = build_decoder(
        DecoderConfig(
            "lstm",
            "soft",
            sizes["vocabulary"],
            50,
            sizes["channels"],
            sizes["positions"],
            options.feature_size,
            options.hidden_size,
            options.attention_size,
            dropout=options.dropout,
        )
    ).train()
    optimizer = build_optimizer(decoder, options)
    set_rates(optimizer, (options.learning_rate, options.projection_learning_rate))
    print("ready", flush=True)
    for _ in sys.stdin:
        for batch in batches:
            training_step(decoder, optimizer, [batch], options)[0].item()
        print(sum(tokens.shape[0] * tokens.shape[1] for _, tokens in batches), flush=True)


if __name__ == "__main__":
    main()
