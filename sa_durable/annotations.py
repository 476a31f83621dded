"""Looking into annotations: what they leave open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from types import UnionType
from typing import Any, NewType, TypeVar, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import TypeAliasType, get_type_hints, is_typeddict


def is_loose(annotation: Any) -> bool:
    """Whether some part of it could be anything: Any, object, a type variable, a container without a type for what is in
    it, a model that takes more fields than it names."""
    return _anywhere(annotation, _open)


def is_exact(annotation: Any) -> bool:
    """Whether what pydantic validates as this is written as JSON in one way only, so that it needn't be looked at: types
    of Python's own, and lists, string-keyed dicts and unions of them. Nothing that can be changed behind pydantic's back,
    or that says how it is validated or written."""
    if annotation in _EXACT:
        return True
    origin, parts = get_origin(annotation), get_args(annotation)
    if not parts or (origin is dict and parts[0] is not str):
        return False  # typing.List and typing.Dict have an origin
    return origin in _EXACT_CONTAINERS and all(map(is_exact, parts))


_EXACT = (int, str, bool, float, None, type(None), Decimal, UUID, datetime, date, time, timedelta)
_EXACT_CONTAINERS = (list, dict, Union, UnionType)


def has_floats(annotation: Any) -> bool:
    """Whether some part of it is a float."""
    return _anywhere(annotation, lambda part: part is float)


def has_typed_keys(annotation: Any) -> bool:
    """Whether some mapping in it has keys of a type that is no string."""
    return _anywhere(
        annotation, lambda part: _is_mapping(get_origin(part)) and get_args(part)[:1] not in ((str,), (Any,))
    )


def _open(part: Any) -> bool:
    container = get_origin(part) or part  # typing.Sequence is an alias of a container, also without arguments
    bare_container = (
        isinstance(container, type) and issubclass(container, Collection) and not _is_scalar(container)
    )
    return (
        part in (Any, object)
        or isinstance(part, TypeVar)
        or _takes_more(part)
        or (bare_container and not list(_parts(part)))
    )


def _takes_more(part: Any) -> bool:
    if isinstance(part, type) and issubclass(part, BaseModel):
        return part.model_config.get("extra") == "allow"
    return bool(getattr(part, "__pydantic_config__", {}).get("extra") == "allow")


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_scalar(type_: type) -> bool:
    return issubclass(type_, str | bytes | bytearray) or dataclasses.is_dataclass(type_)


def _anywhere(annotation: Any, test: Callable[[Any], bool]) -> bool:
    seen: list[Any] = []
    rest = [annotation]
    while rest:
        part = rest.pop()
        if not any(part is known for known in seen):
            seen.append(part)
            if test(part):
                return True
            rest.extend(_parts(part))
    return False


def _parts(annotation: Any) -> Iterator[Any]:
    """What it is made of: the arguments of a generic, the fields of a model, what a name stands for."""
    if isinstance(annotation, NewType):
        yield annotation.__supertype__
    elif isinstance(named := get_origin(annotation) or annotation, TypeAliasType):
        yield named.__value__
        yield from get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for field in annotation.model_fields.values():
            yield field.annotation
    elif is_typeddict(annotation) or dataclasses.is_dataclass(annotation):
        yield from _fields(annotation)
    else:
        yield from get_args(annotation)


@lru_cache(512)
def _fields(annotation: Any) -> tuple[Any, ...]:
    try:
        return tuple(get_type_hints(annotation).values())
    except (NameError, TypeError):
        return ()  # what pydantic can resolve and we can't is not looked into
