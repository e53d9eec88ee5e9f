"""The training step of an older commit of this project, for ``benchmarks.step --before``.

It runs with the older code on Python's path, imports nothing of today's, and measures nothing: for each precision that
it reads on a line of standard input it trains on all its batches once, and answers with their number of captions.

    PYTHONPATH=FOLDER python -P benchmarks/step_before.py CAPTIONS.npz SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from captioner.training.step import training_step

from captioner.decoder import DecoderConfig, build_decoder
from captioner.device import prepare_device
from captioner.parameters import TrainParameters
from captioner.training import batches as old_batches  # the sampler and the table were here
from captioner.training.optimizers import build_optimizer, set_rates


def make_step(settings: dict, batches: list, device: torch.device, precision: str) -> Callable[[], int]:
    """Trains on every batch once and returns the number of captions."""
    torch.manual_seed(0)
    options = TrainParameters(hidden_size=settings["hidden"], precision=precision)
    config = DecoderConfig(
        decoder="lstm",
        attention="soft",
        vocabulary_size=settings["vocabulary"],
        embedding_size=settings["vector_size"],
        channels=settings["channels"],
        positions=settings["positions"],
        feature_size=options.feature_size,
        hidden_size=options.hidden_size,
        attention_size=options.attention_size,
        dropout=options.dropout,
    )
    decoder = build_decoder(config).to(device).train()
    optimizer = build_optimizer(decoder, options)
    set_rates(optimizer, (options.learning_rate, options.projection_learning_rate))

    def step() -> int:
        captions = 0
        for features, tokens in batches:
            total, _ = training_step(decoder, optimizer, [(features, tokens)], options)
            total.item()
            captions += int((tokens[..., 1] != 0).sum())
        return captions

    return step


def main(captions: Path, settings: dict) -> None:
    device = prepare_device(settings["device"], settings["threads"])
    arrays = np.load(captions)
    table = old_batches.CaptionTable(arrays["image_ids"], arrays["tokens"], arrays["image"])
    drawn = old_batches.epoch_batches(table, settings["batch_size"], 0, 1, 0, 1)[: settings["batches"]]
    generator = torch.Generator().manual_seed(0)
    batches = []
    for batch in drawn:
        tokens = table.tokens[batch.captions]  # padded to the longest caption, as the older loader did
        tokens = torch.from_numpy(np.ascontiguousarray(tokens[..., : int((tokens != 0).sum(-1).max())]))
        shape = (len(tokens), settings["positions"], settings["channels"])
        batches.append((torch.rand(shape, generator=generator).half().to(device), tokens))
    steps = {precision: make_step(settings, batches, device, precision) for precision in settings["precisions"]}
    print("ready", flush=True)
    for line in sys.stdin:
        print(steps[line.strip()](), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
