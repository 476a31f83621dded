"""What is stored of an exception."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic_core import to_jsonable_python

from ...codec import dumps
from ...errors import DeclarationError, Fail, InvalidParams, InvalidResult
from ...values import Json, TaskError

MESSAGE_LENGTH = 4 * 1024
TRACEBACK_LENGTH = 16 * 1024
FIELD_LENGTH = 4 * 1024  # of one field as JSON text
FIELDS_LENGTH = 16 * 1024  # of all
FIELDS = 64
UNREADABLE = "(it could not be read)"
LEFT_OUT = "(left out: the fields are too large)"
_FINAL = (Fail, InvalidParams, InvalidResult, DeclarationError)
_HERE = str(Path(__file__).parents[1])


def to_task_error(error: BaseException) -> TaskError:
    """The type, message, traceback and fields of an error, bounded in size and always storable."""
    return TaskError(
        _storable(type(error).__qualname__, 255),
        _storable(_message(error), MESSAGE_LENGTH),
        _storable(_traceback(error), TRACEBACK_LENGTH),
        next(filter(None, map(_fields, _leaves(error))), None),
    )


def timeout_error(what: str, seconds: float, where: str) -> TaskError:
    """What is stored of an execution whose time was over: `where` it was then takes the place of a traceback."""
    name = TaskError.HANDLER_TIMEOUT
    traceback = _storable(f"Its time was over here:\n{where}{name}: {what}\n", TRACEBACK_LENGTH)
    return TaskError(name, what, traceback, {"timeout_seconds": seconds})


def retryable(error: BaseException, non_retryable: tuple[type[BaseException], ...] = ()) -> bool:
    """Whether another attempt can do better: not after Fail, an error of `non_retryable`, or a group (of a TaskGroup)
    that has one; and what is declared, called or returned in a wrong way stays so."""
    return not any(isinstance(leaf, (*_FINAL, *non_retryable)) for leaf in _leaves(error))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """An error itself; of a group its members."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may fail; its run must end all the same
        return "(its message could not be made)"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, _without_ours(error.__traceback__)))
    except Exception:  # noqa: BLE001 - as above
        return "(its traceback could not be made)"


def _without_ours(tb: TracebackType | None) -> TracebackType | None:
    """The traceback from the handler on."""
    first = tb
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_HERE):
        first = first.tb_next
    return first or tb


def _fields(error: BaseException) -> dict[str, Json] | None:
    """What an exception declares as its fields; what can't be stored is replaced by text."""
    try:
        return _read_fields(error)
    except Exception:  # noqa: BLE001 - as above: its declaration is no list of names
        return None


def _read_fields(error: BaseException) -> dict[str, Json] | None:
    room, fields = FIELDS_LENGTH, {}
    for name, read in islice(_declared(error), FIELDS):
        field = _field(read)
        room -= len(dumps(field))
        fields[_storable(name, 255)] = field if room >= 0 else LEFT_OUT
    return fields or None


def _declared(error: BaseException) -> Iterator[tuple[str, Callable[[], Any]]]:
    if isinstance(error, Fail):
        for name, value in error.fields.items():
            yield name, partial(_same, value)
        return
    names = getattr(type(error), "__durable_fields__", ())
    for name in (names,) if isinstance(names, str) else names:
        yield str(name), partial(getattr, error, str(name))


def _same(value: Any) -> Any:
    return value


def _field(read: Callable[[], Any]) -> Json:
    try:
        plain = _clean(to_jsonable_python(read(), bytes_mode="base64", fallback=repr))
        text = dumps(plain)
    except Exception:  # noqa: BLE001 - as above: no such attribute, no repr, it contains itself, or takes megabytes
        return UNREADABLE
    return plain if len(text) <= FIELD_LENGTH else _storable(text, FIELD_LENGTH)


def _clean(value: Json) -> Json:
    match value:
        case str():
            return _storable(value, FIELDS_LENGTH)
        case float() if not isfinite(value):
            return str(value)
        case list():
            return [_clean(inner) for inner in value]
        case dict():
            return {_clean(str(key)): _clean(inner) for key, inner in value.items()}
        case _:
            return value


def _storable(text: str, length: int) -> str:
    """`text` with its middle left out if it is too long; NUL and lone surrogates escaped."""
    if len(text) > length:
        end = length * 2 // 3
        text = f"{text[: length - end - 5]} ... {text[-end:]}"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
