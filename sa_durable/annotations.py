"""Looking into annotations: what they leave open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict


def is_loose(annotation: Any) -> bool:
    """Whether some part of it could be anything: Any, object, a container without a type for what is in it."""
    return _anywhere(annotation, _open)


def has_typed_keys(annotation: Any) -> bool:
    """Whether some mapping in it has keys of a type that is no string."""
    return _anywhere(
        annotation, lambda part: _is_mapping(get_origin(part)) and get_args(part)[:1] not in ((str,), (Any,))
    )


def _open(part: Any) -> bool:
    bare_container = isinstance(part, type) and issubclass(part, Collection) and not _is_scalar(part)
    return part in (Any, object) or (bare_container and not list(_parts(part)))


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
    """What it is made of: the arguments of a generic, the fields of a model."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
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
