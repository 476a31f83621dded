"""JSON: which values can be stored, and how values of annotated types are encoded and decoded."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from math import isfinite
from reprlib import Repr
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from .annotations import has_floats, has_typed_keys, is_loose
from .values import Json

MAX_BYTES = 1024 * 1024
"""Largest JSON value that is stored, in bytes."""

_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_SCALARS = (int, str, bool, float, type(None))
"""Types whose values pydantic returns unchanged."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_NUL, _NUL_OR_NULL = re.compile(rb"\\u0000"), re.compile(rb"\\u0000|null")
"""What pydantic's to_json writes for a NUL; and for NaN and infinities, which JSON doesn't have, and None."""

_FAST_TEXT_BYTES = 4000
"""Longest text that is encoded in one step. The json module reads no integers of more than 4300 digits."""

_MESSAGE_END = 500
"""Characters that are kept of each end of a long message."""

_short = Repr()
_short.maxstring = _short.maxother = 300


def short_repr(value: object) -> str:
    """Return the repr of `value` for a message, cut to about 300 characters."""
    return _short.repr(value)


class NotJson(ValueError):
    """A value can't be stored as JSON in PostgreSQL, or stored JSON doesn't match a type.

    The message names the place in the value, and never quotes the value, because errors end up in logs. Of a
    message about long keys, both ends are kept.
    """

    def __init__(self, message: str) -> None:
        long = len(message) > 2 * _MESSAGE_END
        super().__init__(f"{message[:_MESSAGE_END]} ... {message[-_MESSAGE_END:]}" if long else message)


def dumps(value: Json, *, place: str = "value", limit: int = MAX_BYTES) -> str:
    """Return `value` as compact JSON text that PostgreSQL's jsonb stores unchanged.

    Args:
        value: Made of JSON's own types, with string keys.
        place: What to call the value in errors.
        limit: Largest size, in bytes.

    Raises:
        NotJson: The value has a NaN, an infinity, a NUL character, a lone surrogate or another type, or it is
            too large.
    """
    try:
        text = "null" if value is None else _encode(value)
        size = len(text.encode())
    except RecursionError:
        raise NotJson(f"{place} is nested too deeply or contains itself") from None
    except (TypeError, ValueError) as error:
        require_json(value, place)
        raise NotJson(f"{place}: {error}") from None
    if size > limit:
        raise NotJson(
            f"{place} takes {size} bytes as JSON; {limit} are allowed. Store it elsewhere and pass its id"
        )
    if "\\u0000" in text:
        require_json(value, place)
    return text


def require_json(value: Any, place: str) -> None:
    """Check that `value` is made of JSON's own types, with string keys at every level.

    Raises:
        NotJson: It isn't, or jsonb can't store it.
    """
    try:
        problem = _find_problem(value, place)
    except RecursionError:
        raise NotJson(f"{place} is nested too deeply or contains itself") from None
    if problem:
        raise NotJson(problem)


def _find_problem(value: Any, place: str) -> str | None:
    """Return the first place that JSON, or PostgreSQL's jsonb, can't hold; None if there is none."""
    match value:
        case None | bool() | int():
            return None
        case float():
            return None if isfinite(value) else f"{place} is {value}: JSON has no such number"
        case str():
            return _find_text_problem(value, place)
        case list() | tuple():
            return next(filter(None, (_find_problem(v, f"{place}[{i}]") for i, v in enumerate(value))), None)
        case dict():
            for key, inner in value.items():
                if not isinstance(key, str):
                    return f"{place} has the key {key!r}: JSON keys are strings"
                if problem := (
                    _find_text_problem(key, f"{place} key {key!r}") or _find_problem(inner, f"{place}.{key}")
                ):
                    return problem
            return None
        case _:
            name = type(value).__qualname__
            return f"{place} is of type {name}, which has no JSON form here: annotate it with its type"


def _find_text_problem(text: str, place: str) -> str | None:
    if "\0" in text:
        return f"{place} has a NUL character, which PostgreSQL can't store"
    if _SURROGATE.search(text):
        return f"{place} has a lone surrogate, which is no character"
    return None


def _require_unchanged(value: Any, place: str, *, string_keys: bool) -> None:
    """Raise NotJson for what pydantic would encode as something else.

    That is NaN, infinities and, with `string_keys`, keys that are no strings.
    """
    match value:
        case float() if not isfinite(value):
            raise NotJson(f"{place} is {value}: JSON has no such number")
        case dict():
            for key, inner in value.items():
                if string_keys and not isinstance(key, str):
                    raise NotJson(f"{place} has the key {key!r}: JSON keys are strings")
                _require_unchanged(inner, f"{place}.{key}", string_keys=string_keys)
        case list() | tuple() | set() | frozenset():
            for i, inner in enumerate(value):
                _require_unchanged(inner, f"{place}[{i}]", string_keys=string_keys)


class Coder:
    """Encode and decode the values of one annotated type, by a pydantic TypeAdapter that is made when needed.

    Args:
        annotation: The type. Any stands for plain JSON.
        exact: The type is a TypedDict whose fields are all `annotations.is_exact`.
    """

    __slots__ = ("_adapter", "_loose", "_recheck", "_scalar", "_untyped", "annotation")

    def __init__(self, annotation: Any, *, exact: bool = False) -> None:
        self.annotation = annotation
        self._recheck: re.Pattern[bytes] | None = None
        """Finds text of `to_json` that may not be what was meant. None: don't use `to_json`."""
        if exact:
            self._recheck = _NUL_OR_NULL if has_floats(annotation) else _NUL
        self._untyped = annotation is Any
        self._scalar = annotation if annotation in _SCALARS else None
        self._adapter: TypeAdapter[Any] | None = None
        self._loose: bool | None = None

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """The TypeAdapter of the annotation. Raises NotJson if pydantic doesn't know the type."""
        if self._adapter is None:
            try:
                self._adapter = TypeAdapter(self.annotation)
            except PydanticUserError as error:
                raise NotJson(f"type {self.annotation!r} can't be stored as JSON: {error}") from error
        return self._adapter

    def checked_text(self, value: Any, place: str) -> str:
        """Check and encode `value`, and return it as JSON text. Raises NotJson."""
        if self._recheck:
            # One step takes a quarter of the time. Whatever it refuses or may change takes the slow way
            # below, which also finds the place for the error.
            adapter = self.adapter
            with suppress(ValueError):  # the base of pydantic's errors
                encoded = adapter.serializer.to_json(adapter.validator.validate_python(value))
                if len(encoded) <= _FAST_TEXT_BYTES and not self._recheck.search(encoded):
                    return encoded.decode()
        return dumps(self.encode(self.check(value), place), place=place)

    def encode(self, value: Any, place: str) -> Json:
        """Return the JSON value of `value`. Raises NotJson."""
        if self._untyped:
            require_json(value, place)
            return value
        if type(value) is self._scalar:
            return value
        try:
            if self.is_loose:
                # Where nothing says what the type is, pydantic turns NaN into null and keys into strings.
                _require_unchanged(
                    self.adapter.dump_python(value, warnings="error"),
                    place,
                    string_keys=not has_typed_keys(self.annotation),
                )
            return self.adapter.serializer.to_python(value, mode="json", warnings="error")
        except NotJson:
            raise
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise NotJson(_describe(error, place)) from None

    @property
    def is_loose(self) -> bool:
        """Whether some part of the type can be anything."""
        if self._loose is None:
            self._loose = is_loose(self.annotation)
        return self._loose

    def check(self, value: Any, place: str = "") -> Any:
        """Return the value of the annotated type that a caller means by `value`, such as 7 for "7".

        Args:
            value: What the caller passed.
            place: What to call the value in errors. Without it, only the places within are named.

        Raises:
            NotJson: The value doesn't match the type.
        """
        return self._validate(value, place, strict=None)

    def decode(self, value: Json, place: str = "") -> Any:
        """Return the value of the annotated type that was stored as `value`.

        Strict types are decoded from their own JSON too, which has fewer types than Python.

        Args:
            value: The stored JSON.
            place: As for `check`.

        Raises:
            NotJson: The JSON doesn't match the type.
        """
        return self._validate(value, place, strict=False)

    def _validate(self, value: Any, place: str, *, strict: bool | None) -> Any:
        if self._untyped or type(value) is self._scalar:
            return value
        try:
            return self.adapter.validate_python(value, strict=strict)
        except (ValidationError, RecursionError) as error:
            raise NotJson(_describe(error, place)) from None


_INPUT = re.compile(r"input_value=.*?, (?=input_type=)", re.DOTALL)
_MAX_PLACES = 5
"""Places that the text of one error names."""


def _describe(error: Exception, place: str) -> str:
    """Return which places don't match, and why, without the values that pydantic would quote."""
    if not isinstance(error, ValidationError):
        return f"{place or 'value'}: {_INPUT.sub('', str(error))}"
    found = error.errors(include_input=False, include_context=False, include_url=False)
    described = [
        ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"])))
        for each in found[:_MAX_PLACES]
    ]
    if len(found) > _MAX_PLACES:
        described.append(f"and {len(found) - _MAX_PLACES} more")
    return (f"{place}: " if place else "") + "; ".join(described)
