"""One parameter: a dataclass field with its default, help text, bounds and choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import Field, field
from typing import Any

Choices = Iterable[str] | Callable[[], Iterable[str]]


def option(
    default: Any,
    help: str,
    *,
    choices: Choices | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field with its help text, bounds and choices; a list default becomes a tuple.

    Args:
        default: the value where params.yaml has none.
        help: one line for the parameter table.
        choices: the allowed values, or a function that returns them. A function is called whenever a value is checked
            or the table is printed, so it may read a registry that imports torch.
        low: smallest allowed value, inclusive.
        high: largest allowed value, inclusive.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    return field(default=tuple(default) if isinstance(default, list) else default, metadata=metadata)


def parameter_name(field: Field) -> str:
    """The name in params.yaml: the field's name without the underscore that avoids a Python keyword (``from_``)."""
    return field.name.rstrip("_")


def field_choices(field: Field) -> tuple[str, ...] | None:
    """The allowed values of a field now, or None where there are no choices."""
    choices = field.metadata["choices"]
    if choices is None:
        return None
    return tuple(choices() if callable(choices) else choices)
