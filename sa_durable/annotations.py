"""Inspect type annotations, to decide how values of the type are checked and encoded."""

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
    """Return whether some part of the annotation could be anything.

    That is Any, object, a type variable, a container without a type for its items, or a model that takes more
    fields than it names.
    """
    return _anywhere(annotation, _is_open)


def is_exact(annotation: Any) -> bool:
    """Return whether values that pydantic has validated as this have one JSON form only.

    Such values needn't be checked. True for built-in types, and lists, string-keyed dicts and unions of them.
    False for types that can change without pydantic's knowledge, or that say themselves how they are
    validated or written.
    """
    if annotation in _EXACT:
        return True
    origin, parts = get_origin(annotation), get_args(annotation)
    if not parts or (origin is dict and parts[0] is not str):
        return False  # without parts: a bare typing.List or typing.Dict, which has an origin
    return origin in _EXACT_CONTAINERS and all(map(is_exact, parts))


_EXACT = (int, str, bool, float, None, type(None), Decimal, UUID, datetime, date, time, timedelta)
_EXACT_CONTAINERS = (list, dict, Union, UnionType)


def has_floats(annotation: Any) -> bool:
    """Return whether some part of the annotation is a float."""
    return _anywhere(annotation, lambda part: part is float)


def has_typed_keys(annotation: Any) -> bool:
    """Return whether some mapping in the annotation has keys of another type than str."""
    return _anywhere(
        annotation, lambda part: _is_mapping(get_origin(part)) and get_args(part)[:1] not in ((str,), (Any,))
    )


def _is_open(part: Any) -> bool:
    container = get_origin(part) or part  # typing.Sequence has an origin, also without arguments
    bare_container = (
        isinstance(container, type) and issubclass(container, Collection) and not _is_scalar(container)
    )
    return (
        part in (Any, object)
        or isinstance(part, TypeVar)
        or _takes_more_fields(part)
        or (bare_container and not list(_parts(part)))
    )


def _takes_more_fields(part: Any) -> bool:
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
    """Return the parts of an annotation: generic arguments, fields of a model, the meaning of an alias."""
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
        return ()  # pydantic can resolve some annotations that get_type_hints can't; those aren't inspected
