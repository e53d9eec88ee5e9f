"""The parameter table of the documentation: ``python -m captioner.parameters.table`` prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from captioner.parameters.options import field_choices, parameter_name
from captioner.parameters.schema import Parameters


def rows(section: Any, prefix: str = "") -> Iterator[str]:
    """One Markdown row for each parameter: dotted name, default, allowed values, help text."""
    nested = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((value, f"{field.name}."))
            continue
        name, help_text = parameter_name(field), field.metadata["help"]
        yield f"| `{prefix}{name}` | `{_format(value)}` | {_allowed(field)} | {help_text} |"
    for value, name in nested:
        yield from rows(value, name)


def table() -> str:
    """The whole table as Markdown, in the order of the code."""
    return "\n".join(["| parameter | default | allowed | what it does |", "|---|---|---|---|", *rows(Parameters())])


def _allowed(field: dataclasses.Field) -> str:
    choices = field_choices(field)
    if choices is not None:
        return ", ".join(choices)
    low, high = field.metadata["low"], field.metadata["high"]
    if low is None and high is None:
        return ""
    return " … ".join("" if bound is None else f"{bound:g}" for bound in (low, high))


def _format(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(table())
