"""A report page in a headless Chromium: its size, the time until it can be read, and how evenly it scrolls.

    python -m benchmarks.page results/report/index.html           # one made with evaluate.report_images=500 shows the
    most

With all its images shown, the page is scrolled from top to bottom, 100 pixels a frame (a notch of a wheel; 6,000 pixels
a second), at 1400 and 390 pixels wide, on a processor slowed down ``--slower`` times. ``ours`` is frames drawn in a
second of it, ``other`` the 60 that a screen shows. A frame of more than 50 ms is one that people see.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import click

from benchmarks.chromium import MISSING, find_chromium, launch
from benchmarks.report import print_results, result

SCREEN = 60.0  # frames a second
WIDTHS = (1400, 390)
# Resolves to the milliseconds between the frames that were drawn while the page went by.
SCROLL = """() => new Promise((resolve) => {
  const times = [];
  const step = (now) => {
    times.push(now);
    const before = scrollY;
    scrollBy({ top: 100, behavior: "instant" });
    if (scrollY === before) resolve(times.slice(1).map((time, place) => time - times[place]));
    else requestAnimationFrame(step);
  };
  scrollTo(0, 0);
  requestAnimationFrame(step);
})"""


@click.command(help=__doc__)
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--repeats", default=5)
@click.option("--slower", default=1.0, help="how much slower the processor is made to look")
def main(page: Path, repeats: int, slower: float) -> None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise click.ClickException("playwright is not installed; pip install '.[test]'") from error
    program = find_chromium()
    if program is None:
        raise click.ClickException(MISSING)
    megabytes = page.stat().st_size / 1e6
    results = []
    with sync_playwright() as running:
        browser = launch(running, program)
        for width in WIDTHS:
            rates, gaps, opened = [], [], []
            for _ in range(repeats):
                tab = browser.new_page(viewport={"width": width, "height": 900})
                tab.context.new_cdp_session(tab).send("Emulation.setCPUThrottlingRate", {"rate": slower})
                tab.goto(page.resolve().as_uri())
                opened.append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
                while tab.locator(".more").is_visible():
                    tab.locator(".more").click()  # the page begins with twelve images
                times = tab.evaluate(SCROLL)
                rates.append(1000 * len(times) / sum(times))
                gaps.extend(times)
                tab.close()
            name = f"{page.name}, {megabytes:.1f} MB, {width} px wide, processor {slower:g}x slower"
            results.append(
                result(
                    name,
                    rates,
                    [SCREEN] * repeats,
                    0.9,
                    "frames/s",
                    megabytes=round(megabytes, 2),
                    load_ms=round(statistics.median(opened)),
                    frames=len(gaps),
                    over_50_ms=sum(gap > 50 for gap in gaps),
                    longest_ms=round(max(gaps), 1),
                )
            )
        browser.close()
    for each in results:
        print(
            f"{each['name']}: read after {each['load_ms']} ms; {each['over_50_ms']} of {each['frames']:,} frames "
            f"took more than 50 ms, the longest {each['longest_ms']} ms"
        )
    print_results(results)


if __name__ == "__main__":
    main()
