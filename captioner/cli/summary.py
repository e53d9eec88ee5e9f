"""``captioner summary``: the last run's scores, three captions beside a reference, and where to look next."""

from __future__ import annotations

import click

from captioner import paths


@click.command("summary")
def command() -> None:
    """Show what the last run of the pipeline reached."""
    from captioner.evaluation.summary import summary
    from captioner.parameters import load_parameters

    click.echo(summary(paths.EVALUATE_RESULTS, paths.captions(load_parameters(paths.PARAMETERS).dataset), paths.REPORT))
