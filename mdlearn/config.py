"""Configurations: frozen, validated, the same names as flags and as TOML keys.

A field of a configuration is one option of a verb. Its alias is the name that a person types; the
name in the code carries the unit where there is one.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mdlearn.errors import UsageError

PRECISION = "mixed: float32 network, float64 positions, momenta and sums; or float64 throughout"
"""What the option `precision` of every verb means."""


class Config(BaseModel):
    """Base of the configurations of the verbs."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        populate_by_name=True,
        protected_namespaces=(),
    )


Kind = TypeVar("Kind", bound=Config)


def option_names(kind: type[Config]) -> dict[str, str]:
    """The names that people type, each with the name of its field."""
    return {field.alias or name: name for name, field in kind.model_fields.items()}


def typed(kind: type[Config], field: str) -> str:
    """The name of a field as people type it after the two dashes."""
    return (kind.model_fields[field].alias or field).replace("_", "-")


def resolve(kind: type[Kind], file: Path | None, given: Mapping[str, Any]) -> Kind:
    """Builds a configuration from a TOML file and from flags, which win.

    Args:
        kind: the configuration.
        file: TOML, or None.
        given: flags by option name; None means not given.

    Raises:
        UsageError: an unknown key (the nearest one is named), a value of the wrong kind or out of
            range, or a file that is not TOML.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise UsageError(
                f"{file}: not TOML ({error}); expected lines like `cutoff = 5.0`"
            ) from error
    values.update({name: value for name, value in given.items() if value is not None})
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(kind, error, file)) from None


def _explain(kind: type[Config], error: ValidationError, file: Path | None) -> str:
    """The first complaint of the validator as one line."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        known = list(option_names(kind))
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(known)}"
        return f"{file}: unknown key '{key}'; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return (
        f"--{key.replace('_', '-')}: {message[0].lower()}{message[1:]} (found {first['input']!r})"
    )


def to_toml(config: Config) -> str:
    """A configuration as a TOML file that gives it back."""
    values = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def parse_duration(text: object, units: Mapping[str, float]) -> object:
    """Reads a number with a unit, as in `100ps`; what is not text is left alone.

    Args:
        text: what was typed.
        units: the units that are allowed, with their sizes.

    Raises:
        ValueError: not a number, or not one of the units.
    """
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zA-Zµ]+)\s*", text)
    if match is None or match[2] not in units:
        raise ValueError(f"expected a number and one of the units {', '.join(units)}")
    return float(match[1]) * units[match[2]]


def parse_course(text: str, units: Mapping[str, float]) -> list[tuple[float | None, float]]:
    """Reads how a quantity varies, as in `300`, `100:300` or `100@0ps:300@5ps:300@10ps`.

    Args:
        text: what was typed.
        units: of time, with their sizes.

    Returns:
        Times and values; a single value and the ends of a run have no time.

    Raises:
        ValueError: not numbers, some times and some not, or times that do not rise.
    """
    points: list[tuple[float | None, float]] = []
    for part in text.split(":"):
        value, _, time = part.partition("@")
        when = parse_duration(time, units) if time else None
        try:
            points.append((None if when is None else float(str(when)), float(value)))
        except ValueError:
            raise ValueError(
                "expected a number, or numbers joined by ':', as in 300, 100:300 or 100@0ps:300@5ps"
            ) from None
    times = [time for time, _ in points if time is not None]
    if times and len(times) < len(points):
        raise ValueError("expected a time for every number or for none, as in 100@0ps:300@5ps")
    if not times and len(points) > 2:
        raise ValueError("expected times where there are more than two numbers: 1@0ps:2@5ps:3@9ps")
    if any(late <= early for early, late in itertools.pairwise(times)):
        raise ValueError("expected times that rise")
    if any(not math.isfinite(value) for _, value in points):
        raise ValueError("expected finite numbers")
    return points
