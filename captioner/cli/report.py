"""``captioner report``: one page of one or several experiments."""

from __future__ import annotations

from pathlib import Path

import click

from captioner import paths


@click.command("report")
@click.argument("results", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The page.",
)
def command(results: tuple[str, ...], out: Path) -> None:
    """Put the experiments RESULTS side by side on one page that opens without a network; the last run's when none is
    named.

    Each of RESULTS is a folder of results, or an experiment, branch, tag or commit as `dvc exp show` lists them. The
    page shows scores with intervals, whether they differ by more than chance, curves, and the images on which the
    captions differ most. A revision whose results are not here is left out, and it is said why.
    """
    from captioner.errors import CaptionerError
    from captioner.report import render
    from captioner.report.beside import side_by_side
    from captioner.report.sources import read_sources
    from captioner.sidecar import write_atomically

    sources, left_out = read_sources(results or (str(paths.RESULTS),), paths.RESULTS)
    for name, reason in left_out:
        click.echo(f"not shown: {name}: {reason}", err=True)
    try:
        write_atomically(out, render(side_by_side(sources)))
    except OSError as error:
        raise CaptionerError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from error
    click.echo(f"{out}: {', '.join(source.name for source in sources)}")
