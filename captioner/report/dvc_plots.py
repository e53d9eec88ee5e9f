"""The page into which ``dvc plots`` puts its charts, with Vega inside: it opens without a network.

DVC's own page loads Vega from a CDN. ``plots.html_template`` names another one; the scripts are those that vl-convert
brings (Vega, Vega-Lite and Vega-Embed, BSD-3-Clause). ``make install`` writes the page and names it:

    python -m captioner.report.dvc_plots .dvc/plots/page.html
    dvc config --local plots.html_template plots/page.html
"""

from __future__ import annotations

from pathlib import Path

import click

from captioner.errors import CaptionerError
from captioner.sidecar import write_atomically

_VEGA_LITE = "5.21"  # DVC's templates are of version 5
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{refresh_tag}
<title>DVC plots</title>
<style>
body { display: flex; flex-wrap: wrap; gap: 24px; margin: 24px; font-family: system-ui, sans-serif; }
img { max-width: 100%; }
</style>
<script>
// Vega, Vega-Lite and Vega-Embed, BSD-3-Clause, https://github.com/vega
(() => {
VEGA
// DVC gives an empty chart for a plots file without rows: results that are listed there to be kept in git
const embed = window.vegaEmbed;
window.vegaEmbed = (place, chart) =>
  Object.keys(chart).length ? embed(place, chart) : document.querySelector(place).remove();
})();
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def plots_page() -> str:
    """The template for ``plots.html_template``, with DVC's placeholders.

    Raises:
        CaptionerError: vl-convert is not installed.
    """
    try:
        from vl_convert import javascript_bundle
    except ImportError as error:
        raise CaptionerError(
            "vl-convert is not installed; pip install vl-convert-python, or look at DVC's plots with a network"
        ) from error
    scripts = javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
    # neither the browser nor DVC may find the end of the script or a placeholder within it
    found = [text for text in ("</script", "<!--", "{plot_divs}", "{refresh_tag}", "{scripts}") if text in scripts]
    if found:
        raise CaptionerError(f"vl-convert: its scripts have {found[0]}; pip install vl-convert-python==1.9.0")
    return _PAGE.replace("VEGA", scripts)


@click.command(help="Write the page for `dvc plots` to OUT.")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def main(out: Path) -> None:
    write_atomically(out, plots_page())


if __name__ == "__main__":
    main()
