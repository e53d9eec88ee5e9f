"""What every benchmark shares: things measured in turn in one run, a table, and JSON on the last line.

The things that are compared run one after the other in every round, so that a machine that slows down or is shared
slows all of them; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any


def measure(things: dict[str, Callable[[], int | None]], repeats: int = 5) -> dict[str, list[float]]:
    """Rates of several things, measured in turn, ``repeats`` rounds after one that does not count.

    Args:
        things: name -> function that does the work and returns the number of units done (None: 1).

    Returns:
        name -> units a second in each round.
    """
    rates: dict[str, list[float]] = {name: [] for name in things}
    for round in range(repeats + 1):
        for name, thing in things.items():
            start = time.perf_counter()
            units = thing()
            seconds = time.perf_counter() - start
            if round:
                rates[name].append((1 if units is None else units) / seconds)
    return rates


def result(
    name: str, ours: list[float], other: list[float], target: float | None, unit: str = "1/s", **more: Any
) -> dict[str, Any]:
    """One line of a report from the rates of the same rounds; ``target`` None where nothing is demanded."""
    ratio = statistics.median(a / b for a, b in zip(ours, other, strict=True))
    met = None if target is None else ratio >= target
    return {
        "name": name,
        "ours": round(statistics.median(ours), 3),
        "other": round(statistics.median(other), 3),
        "unit": unit,
        "ratio": round(ratio, 4),
        "target": target,
        "met": met,
        "repeats": len(ours),
        **more,
    }


def compare(
    name: str,
    ours: Callable[[], int | None],
    other: Callable[[], int | None],
    target: float | None,
    repeats: int = 5,
    unit: str = "1/s",
    **more: Any,
) -> dict[str, Any]:
    """Measure two things in turn; the ratio is of their rates, ours / other, so larger is better.

    Args:
        ours, other: do the work once and return the number of units done (None: 1, and the rates are runs a second).
        target: smallest ratio that is good enough, or None.
        more: further facts of the result (threads, sizes, precision).
    """
    rates = measure({"ours": ours, "other": other}, repeats)
    return result(name, rates["ours"], rates["other"], target, unit, **more)


def print_results(results: list[dict[str, Any]]) -> None:
    """A table for people, then all results as JSON on the last line."""
    width = max([len(result["name"]) for result in results] + [4])
    print(f"{'name':{width}}  {'ours':>12}  {'other':>12}  {'unit':12}  {'ratio':>7}  {'target':>7}  met")
    for result in results:
        target = "-" if result["target"] is None else f"{result['target']:.2f}"
        met = {None: "-", True: "yes", False: "NO"}[result["met"]]
        print(
            f"{result['name']:{width}}  {result['ours']:>12,.2f}  {result['other']:>12,.2f}  {result['unit']:12}  "
            f"{result['ratio']:>7.3f}  {target:>7}  {met}"
        )
    print(json.dumps(results), flush=True)
