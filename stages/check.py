"""Stage ``check``: every name and value of params.yaml, before any other stage."""

from __future__ import annotations

import click

from captioner import paths
from captioner.sidecar import write_atomically
from stages.common import read_parameters


@click.command(help=__doc__)
def main() -> None:
    read_parameters()
    # the same text always: the other stages depend on the check, not on parameters that are not theirs
    write_atomically(paths.CHECKED, "params.yaml has been checked\n")


if __name__ == "__main__":
    main()
