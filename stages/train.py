"""Stage ``train``: an attention decoder on cached features into models/ and results/train/. Also under ``torchrun``."""

from __future__ import annotations

import click

from captioner import paths
from captioner.training import train
from stages.common import read_parameters


@click.command(help=__doc__)
def main() -> None:
    parameters = read_parameters()
    dataset = parameters.dataset
    train(
        parameters,
        features=paths.features(dataset, parameters.encoder),
        captions=paths.captions(dataset),
        vocab=paths.vocab(dataset),
        embeddings=paths.embeddings(dataset),
        models=paths.MODELS,
        results=paths.TRAIN_RESULTS,
    )


if __name__ == "__main__":
    main()
