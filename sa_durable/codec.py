"""JSON in and out: what can be stored, how types are encoded, and the key that follows from params."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from hashlib import sha256
from math import isfinite
from reprlib import Repr
from typing import Any, TypeVar

import rfc8785
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from .annotations import has_floats, has_typed_keys, is_loose
from .values import Json

T = TypeVar("T")

MAX_BYTES = 1024 * 1024
ONCE_PREFIX = "~once1:"
_ONCE_FORMAT = "sa_durable/1"
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_SCALARS = (int, str, bool, float, type(None))  # pydantic gives them back as they are
_SURROGATE = re.compile("[\ud800-\udfff]")
# What to_json makes of a NUL, and of a NaN or an infinity, which are no JSON (and of None, which is).
_NUL, _NUL_OR_NULL = re.compile(rb"\\u0000"), re.compile(rb"\\u0000|null")
_SHORT = 4000  # bytes; json takes no integer of more than 4300 digits
_EXACT = 2**53  # from here on a double can't tell neighbouring integers apart


def shown(value: object) -> str:
    """`value` as messages quote it: in about 300 characters, however much there is of it."""
    return _quoting.repr(value)


_END = 500
_quoting = Repr()
_quoting.maxstring = _quoting.maxother = 300


class NotJson(ValueError):
    """A value has no JSON form that PostgreSQL stores as it is. The message names the place; of a long one, its ends: keys
    may be megabytes."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= 2 * _END else f"{message[:_END]} ... {message[-_END:]}")


def dumps(value: Json, *, what: str = "value", limit: int = MAX_BYTES) -> str:
    """`value`, whose keys are strings, as compact JSON text that jsonb takes unchanged. Raises NotJson with the place
    that can't be stored: NaN, an infinity, a NUL character, a lone surrogate, any other type, or too many bytes.
    """
    try:
        text = "null" if value is None else _encode(value)
        size = len(text.encode())
    except RecursionError:
        raise NotJson(f"{what} is nested too deeply or contains itself") from None
    except (TypeError, ValueError) as error:
        check_plain(value, what)
        raise NotJson(f"{what}: {error}") from None
    if size > limit:
        raise NotJson(
            f"{what} takes {size} bytes as JSON; {limit} are allowed. Store it elsewhere and pass its id"
        )
    if "\\u0000" in text:
        check_plain(value, what)
    return text


def check_plain(value: Any, what: str) -> None:
    """Raise NotJson unless `value` is made of JSON's own types, with string keys all the way down."""
    try:
        complaint = _complaint(value, what)
    except RecursionError:
        raise NotJson(f"{what} is nested too deeply or contains itself") from None
    if complaint:
        raise NotJson(complaint)


def _complaint(value: Any, place: str) -> str | None:
    """The first place that JSON, or PostgreSQL's jsonb, can't hold; None if there is none."""
    match value:
        case None | bool() | int():
            return None
        case float():
            return None if isfinite(value) else f"{place} is {value}: JSON has no such number"
        case str():
            return _text_complaint(value, place)
        case list() | tuple():
            return next(filter(None, (_complaint(v, f"{place}[{i}]") for i, v in enumerate(value))), None)
        case dict():
            for key, inner in value.items():
                if not isinstance(key, str):
                    return f"{place} has the key {key!r}: JSON keys are strings"
                if c := _text_complaint(key, f"{place} key {key!r}") or _complaint(inner, f"{place}.{key}"):
                    return c
            return None
        case _:
            return f"{place} is of type {type(value).__qualname__}, which has no JSON form here: annotate the parameter"


def _text_complaint(text: str, place: str) -> str | None:
    if "\0" in text:
        return f"{place} has a NUL character, which PostgreSQL can't store"
    if _SURROGATE.search(text):
        return f"{place} has a lone surrogate, which is no character"
    return None


def _check_kept(value: Any, place: str, *, keys: bool) -> None:
    """Raise NotJson for what an encoder would take and change: NaN, infinities and, with `keys`, keys that are no
    strings."""
    match value:
        case float() if not isfinite(value):
            raise NotJson(f"{place} is {value}: JSON has no such number")
        case dict():
            for key, inner in value.items():
                if keys and not isinstance(key, str):
                    raise NotJson(f"{place} has the key {key!r}: JSON keys are strings")
                _check_kept(inner, f"{place}.{key}", keys=keys)
        case list() | tuple() | set() | frozenset():
            for i, inner in enumerate(value):
                _check_kept(inner, f"{place}[{i}]", keys=keys)


class Coder:
    """Encodes and decodes values of one annotated type, by a pydantic TypeAdapter made when it is first needed.

    `exact`: a TypedDict of types that `annotations.is_exact` knows.
    """

    __slots__ = ("_adapter", "_doubtful", "_loose", "_scalar", "annotation", "plain")

    def __init__(self, annotation: Any, *, exact: bool = False) -> None:
        self.annotation = annotation
        self._doubtful: re.Pattern[bytes] | None = None
        if exact:
            self._doubtful = _NUL_OR_NULL if has_floats(annotation) else _NUL
        self.plain = annotation is Any
        self._scalar = annotation if annotation in _SCALARS else None
        self._adapter: TypeAdapter[Any] | None = None
        self._loose: bool | None = None

    @property
    def adapter(self) -> TypeAdapter[Any]:
        if self._adapter is None:
            try:
                self._adapter = TypeAdapter(self.annotation)
            except PydanticUserError as error:
                raise NotJson(f"type {self.annotation!r} can't be stored as JSON: {error}") from error
        return self._adapter

    def text(self, value: Any, name: str, what: str) -> str:
        """`value` checked, encoded and dumped. Raises NotJson, as `check` and `encode` with `name`, or as `dumps`."""
        if self._doubtful:
            # In one step, which takes a quarter of the time; what that can't do, or might do otherwise, says why below.
            adapter = self.adapter
            with suppress(ValueError):  # of both of pydantic's
                encoded = adapter.serializer.to_json(adapter.validator.validate_python(value))
                if len(encoded) <= _SHORT and not self._doubtful.search(encoded):
                    return encoded.decode()
        return dumps(self.encode(self.check(value, name), name), what=what)

    def encode(self, value: Any, what: str) -> Json:
        """The JSON value of `value`. Raises NotJson."""
        if self.plain:
            check_plain(value, what)
            return value
        if type(value) is self._scalar:
            return value
        try:
            if self.loose:
                # Where there is no type to go by, pydantic would quietly turn NaN into null and keys into strings.
                _check_kept(
                    self.adapter.dump_python(value, warnings="error"),
                    what,
                    keys=not has_typed_keys(self.annotation),
                )
            return self.adapter.serializer.to_python(value, mode="json", warnings="error")
        except NotJson:
            raise
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise NotJson(f"{what}: {_without_values(error)}") from None

    @property
    def loose(self) -> bool:
        """Whether the type leaves something open."""
        if self._loose is None:
            self._loose = is_loose(self.annotation)
        return self._loose

    def check(self, value: Any, what: str) -> Any:
        """The value of the annotated type that a caller means by `value`. Raises NotJson if it doesn't fit."""
        return self._validate(value, what, strict=None)

    def decode(self, value: Json, what: str) -> Any:
        """The value of the annotated type that was stored as `value`: a strict type takes its own JSON back. Raises
        NotJson if the JSON doesn't fit it."""
        return self._validate(value, what, strict=False)

    def _validate(self, value: Any, what: str, *, strict: bool | None) -> Any:
        if self.plain or type(value) is self._scalar:
            return value
        try:
            return self.adapter.validate_python(value, strict=strict)
        except (ValidationError, RecursionError) as error:
            raise NotJson(f"{what}: {_without_values(error)}") from None


_INPUT = re.compile(r"input_value=.*?, (?=input_type=)", re.DOTALL)
_SHOWN = 5  # places in an error's text


def _without_values(error: Exception) -> str:
    """Which places don't fit, and why: pydantic's own text, and the error as a cause, would quote what is there, and
    errors end up in logs."""
    if not isinstance(error, ValidationError):
        return _INPUT.sub("", str(error))
    found = error.errors(include_input=False, include_context=False, include_url=False)
    said = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:_SHOWN]]
    return "; ".join(said) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def once_key(task_name: str, params: Json) -> str:
    """The key of `only_once`: `~once1:` and the SHA-256 of the canonical JSON (RFC 8785) of
    `["sa_durable/1", task_name, params]`.

    Params are the stored JSON, so the key is the same in every process, for every order of keys, and when it is
    computed again from the row. max_attempts, headers, priority and the queue are no part of it.
    """
    return ONCE_PREFIX + sha256(rfc8785.dumps([_ONCE_FORMAT, task_name, _tag(params)])).hexdigest()


def _tag(value: Json) -> Json:
    """`value` with numbers from 2**53 up written as {"~int": digits}, since RFC 8785 would round them and so give
    two ids one key. Objects' own keys that start with `~` get one more, so that nothing else looks like a tag.

    A float that large is an integer too, and jsonb gives it back as one (1e16 becomes 10000000000000000): it is
    tagged by its shortest decimal digits, as PostgreSQL reads them.
    """
    match value:
        case bool():
            return value
        case int() if abs(value) >= _EXACT:
            return {"~int": _digits(value)}
        case float() if abs(value) >= _EXACT:
            return {"~int": _digits(Decimal(repr(value)))}
        case list() | tuple():
            return [_tag(v) for v in value]
        case Mapping():
            return {f"~{k}" if k.startswith("~") else k: _tag(v) for k, v in value.items()}
        case _:
            return value


def _digits(value: int | Decimal) -> str:
    return format(Decimal(value), "f").removesuffix(".0")  # Decimal: str(int) refuses more than 4300 digits
