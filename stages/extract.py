"""Stage ``extract``: images.h5 through a frozen encoder into features/<encoder>.h5. Also under ``torchrun``."""

from __future__ import annotations

import click

from captioner import paths
from captioner.features.extract import extract
from captioner.launch import launch, launched_by_torchrun, process_count
from stages.common import read_parameters


@click.command(help=__doc__)
def main() -> None:
    parameters = read_parameters()
    processes = process_count(parameters.runtime)
    if processes > 1 and not launched_by_torchrun():
        launch("stages.extract", processes)
        return
    dataset, encoder = parameters.dataset, parameters.encoder
    extract(parameters.extract, parameters.runtime, encoder, paths.images(dataset), paths.features(dataset, encoder))


if __name__ == "__main__":
    main()
