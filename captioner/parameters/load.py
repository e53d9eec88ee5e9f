"""Reads params.yaml into frozen dataclasses and checks every value.

An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from captioner.errors import CaptionerError
from captioner.parameters.options import field_choices, parameter_name
from captioner.parameters.schema import Parameters


def load_parameters(path: str | Path = "params.yaml") -> Parameters:
    """Read and check a parameters file.

    Raises:
        CaptionerError: missing or not a YAML mapping, an unknown key, or a value has a wrong type or range.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read ({error.strerror}); run from the project's top folder") from error
    except UnicodeDecodeError as error:
        raise CaptionerError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CaptionerError(f"{path}: not valid YAML ({error}); correct it") from error
    return parse_parameters(content if content is not None else {}, str(path))


def parse_parameters(content: Any, source: str = "parameters") -> Parameters:
    """Check a mapping with the structure of params.yaml; missing keys keep their defaults.

    Args:
        source: name of the mapping in error messages.
    """
    return _parse(Parameters, content, source, "")


def parameters_content(parameters: Any) -> dict[str, Any]:
    """The parameters as JSON values; the inverse of ``parse_parameters``."""
    content = {}
    for field in dataclasses.fields(parameters):
        value = getattr(parameters, field.name)
        if dataclasses.is_dataclass(value):
            value = parameters_content(value)
        content[parameter_name(field)] = list(value) if isinstance(value, tuple) else value
    return content


def _parse(kind: type, content: Any, source: str, prefix: str) -> Any:
    if not isinstance(content, dict):
        raise CaptionerError(
            f"{source}: {prefix.rstrip('.') or 'the file'} is {content!r}; it must be a mapping of names to values"
        )
    hints = typing.get_type_hints(kind)
    fields = {parameter_name(field): field for field in dataclasses.fields(kind)}
    values = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key not in fields:
            near = _nearest(name)
            raise CaptionerError(
                f"{source}: unknown parameter {name}={value!r}; "
                + (f"did you mean {near}?" if near else f"known: {', '.join(fields)}")
            )
        field = fields[key].name
        if dataclasses.is_dataclass(hints[field]):
            values[field] = _parse(hints[field], value, source, f"{name}.")
        else:
            values[field] = _check(value, hints[field], fields[key], f"{source}: {name}={value!r}")
    return kind(**values)


def _nearest(name: str) -> str | None:
    names = list(parameter_names(Parameters))
    leaf = name.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return close[0]
    leaves = {known.rsplit(".", 1)[-1]: known for known in names}
    close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)
    return leaves[close[0]] if close else None


def parameter_names(kind: type, prefix: str = "") -> typing.Iterator[str]:
    """Dotted names of all parameters of a dataclass and its sections."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from parameter_names(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{parameter_name(field)}"


def _check(value: Any, hint: Any, field: dataclasses.Field, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        if not items and field.default != ():
            raise CaptionerError(f"{where}: the list is empty; give at least one value")
        return tuple(_check(item, typing.get_args(hint)[0], field, where) for item in items)
    allowed = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)
    if float in allowed and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    matches = any(
        (kind is float and isinstance(value, (int, float)) and not isinstance(value, bool))
        or (kind is int and isinstance(value, int) and not isinstance(value, bool))
        or (kind in (str, bool) and isinstance(value, kind))
        or (kind is types.NoneType and value is None)
        for kind in allowed
    )
    if not matches:
        names = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in allowed)
        raise CaptionerError(f"{where}: it must be of type {names}, not {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise CaptionerError(f"{where}: it must be a finite number")
    rules = field.metadata
    defaults = field.default if isinstance(field.default, tuple) else (field.default,)
    if value not in defaults:  # a default needs no look at a registry, whose import may cost seconds
        choices = field_choices(field)
        if choices is not None and value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            raise CaptionerError(
                f"{where}: it must be one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")
            )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if rules["low"] is not None and value < rules["low"]:
            raise CaptionerError(f"{where}: it must be at least {rules['low']}")
        if rules["high"] is not None and value > rules["high"]:
            raise CaptionerError(f"{where}: it must be at most {rules['high']}")
    return float(value) if float in allowed and isinstance(value, int) and not isinstance(value, bool) else value
