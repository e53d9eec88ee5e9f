"""The parameter table of the README: ``python -m captioner.parameters.table`` prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from captioner.parameters.schema import Parameters, parameter_name


def rows(section: Any, prefix: str = "") -> Iterator[str]:
    """One Markdown row a parameter: dotted name, default, allowed values, help."""
    nested = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((value, f"{field.name}."))
            continue
        rules = field.metadata
        bounds = " … ".join("" if bound is None else f"{bound:g}" for bound in (rules["low"], rules["high"]))
        allowed = ", ".join(rules["choices"]) if rules["choices"] else bounds if bounds.strip(" …") else ""
        yield f"| `{prefix}{parameter_name(field)}` | `{_shown(value)}` | {allowed} | {rules['help']} |"
    for value, name in nested:
        yield from rows(value, name)


def table() -> str:
    """The whole table as Markdown, in the order of the code."""
    return "\n".join(["| parameter | default | allowed | what it does |", "|---|---|---|---|", *rows(Parameters())])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (
        "null"
        if value is None
        else f"[{', '.join(map(str, value))}]"
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    print(table())
