"""Stage ``download``: images and captions of a data set into images.h5, captions.json and skipped.csv."""

from __future__ import annotations

import click

from captioner import paths
from captioner.images.download import download
from stages.common import read_parameters


@click.command(help=__doc__)
def main() -> None:
    parameters = read_parameters()
    download(
        parameters.download, parameters.runtime, parameters.dataset, paths.folder(parameters.dataset), paths.SOURCES
    )


if __name__ == "__main__":
    main()
