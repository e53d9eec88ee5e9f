"""Stage ``vocab``: the words of the training captions and their vectors into vocab.json and embeddings.npy."""

from __future__ import annotations

import click

from captioner import paths
from captioner.vocabulary.build import build
from stages.common import read_parameters


@click.command(help=__doc__)
def main() -> None:
    parameters = read_parameters()
    dataset = parameters.dataset
    build(
        parameters.vocab, parameters.runtime, paths.captions(dataset), paths.vocab(dataset), paths.embeddings(dataset)
    )


if __name__ == "__main__":
    main()
