"""A configuration as a verb: every field is a flag and a TOML key, described once."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from mdlearn.config import Config, option_names, resolve

Kind = TypeVar("Kind", bound=Config)


def verb(
    name: str, kind: type[Kind], arguments: Sequence[str], run: Callable[[Kind], int], text: str
) -> click.Command:
    """Makes a verb of a configuration and a function that acts on it.

    Args:
        name: the verb.
        kind: the configuration; a field without a default must be given.
        arguments: fields that are given by position instead of by a flag.
        run: does the work; returns the exit code.
        text: what --help says, with an example.
    """

    def callback(config: Path | None, **given: object) -> int:
        typed = {field: name for name, field in option_names(kind).items()}
        return run(resolve(kind, config, {typed[key]: value for key, value in given.items()}))

    parameters: list[click.Parameter] = []
    for typed, field in option_names(kind).items():
        info = kind.model_fields[field]
        if field in arguments:
            parameters.append(click.Argument([field], required=False, type=_type(info)))
        else:
            parameters.append(_option(typed, field, info))
    parameters.append(
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path, dir_okay=False),
            help="TOML file with any of these options as keys; flags win.",
        )
    )
    return click.Command(name, params=parameters, callback=callback, help=text)


def _option(typed: str, field: str, info: FieldInfo) -> click.Option:
    description = (info.description or "").rstrip(".")
    if info.default is not None and info.default is not False:
        description += f" [default: {info.default}]"
    flag = "--" + typed.replace("_", "-")
    kind = _plain(info.annotation)
    if kind is bool:
        return click.Option([flag, field], is_flag=True, default=None, help=description)
    return click.Option([flag, field], type=_type(info), default=None, help=description)


def _type(info: FieldInfo) -> click.ParamType[Any]:
    """What click should read; the configuration checks the value itself."""
    kind = _plain(info.annotation)
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind is Path:
        return click.Path(path_type=Path)
    if any(hasattr(each, "func") for each in (*info.metadata, *_metadata(info.annotation))):
        return click.STRING
    if kind is int:
        return click.INT
    return click.FLOAT if kind is float else click.STRING


def _metadata(annotation: Any) -> tuple[Any, ...]:
    """What `Annotated` says, also within `Optional`."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[1:]
    return sum((_metadata(each) for each in get_args(annotation)), ())


def _plain(annotation: Any) -> Any:
    """The type behind `Optional` and `Annotated`."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    return annotation
