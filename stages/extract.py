"""Stage ``extract``: images.h5 through a frozen encoder into features/<encoder>.h5. Also under ``torchrun``."""

from __future__ import annotations

import click

from captioner import paths
from captioner.features.extract import extract
from stages.common import read_parameters


@click.command(help=__doc__)
def main() -> None:
    parameters = read_parameters()
    dataset, encoder = parameters.dataset, parameters.encoder
    extract(parameters.extract, parameters.runtime, encoder, paths.images(dataset), paths.features(dataset, encoder))


if __name__ == "__main__":
    main()
