"""``captioner compare``: experiments with confidence intervals, and whether they differ by more than chance."""

from __future__ import annotations

from pathlib import PurePosixPath

import click

from captioner import paths


@click.command("compare")
@click.argument("experiments", nargs=-1)
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print one table: a row for each metric of a setting and of a pair."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown tables.")
def command(experiments: tuple[str, ...], as_csv: bool, as_json: bool, as_markdown: bool) -> None:
    """Compare EXPERIMENTS: names or revisions as `dvc exp show` lists them; all that it lists when none is named.

    Shows encoder, decoder, attention and seeds, every metric with its 95 % bootstrap interval over the images, and for
    each pair the difference and the paired bootstrap's p-value. Runs that differ by their seed alone are one setting:
    mean and standard deviation. Experiments with another split, other images or references, or other scoring than the
    first are left out, and it is said why.
    """
    if as_csv + as_json + as_markdown > 1:
        raise click.UsageError("--csv, --json and --markdown exclude one another; give one of them")
    from captioner.comparison import compare, read_runs, table
    from captioner.comparison.repository import Repository

    runs, left_out = read_runs(Repository(), experiments, PurePosixPath(paths.EVALUATE_RESULTS))
    comparison = compare(runs)
    if as_csv:  # one table, no place for what was left out
        for name, reason in left_out:
            click.echo(f"not compared: {name}: {reason}", err=True)
        click.echo(table.as_csv(comparison), nl=False)
    else:
        make = table.as_json if as_json else table.as_markdown if as_markdown else table.as_text
        click.echo(make(comparison, left_out), nl=False)
