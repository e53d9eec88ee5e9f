"""``captioner summary``: the last run's scores, three captions beside a reference, and where to look next."""

from __future__ import annotations

import click

from captioner import paths


@click.command("summary")
def command() -> None:
    """Show what the last run of the pipeline reached."""
    from captioner.evaluation.summary import evaluated_dataset, summary

    captions = paths.captions(evaluated_dataset(paths.EVALUATE_RESULTS))
    click.echo(summary(paths.EVALUATE_RESULTS, captions, paths.REPORT, paths.MODELS))
