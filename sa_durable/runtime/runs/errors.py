"""Turn an exception into the error that is stored with a task. Decide whether another attempt may help."""

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

MAX_NAME_CHARS = 255
"""Of an error's type, and of the name of a field."""

MAX_MESSAGE_CHARS = 4 * 1024
MAX_TRACEBACK_CHARS = 16 * 1024
MAX_FIELD_CHARS = 4 * 1024
"""Of the JSON text of one field."""

MAX_FIELDS_CHARS = 16 * 1024
"""Of the JSON text of all fields."""

MAX_FIELDS = 64
UNREADABLE = "(could not be read)"
"""Stored instead of a field that can't be read or can't be stored."""

LEFT_OUT = "(left out: the fields are too large)"
"""Stored instead of a field beyond `MAX_FIELDS_CHARS`."""

_FINAL = (Fail, InvalidParams, InvalidResult, DeclarationError)
_RUNTIME_DIRECTORY = str(Path(__file__).parents[1])


def to_task_error(error: BaseException) -> TaskError:
    """Return an exception's type, message, traceback and fields, limited in size and always storable."""
    return TaskError(
        _storable(type(error).__qualname__, MAX_NAME_CHARS),
        _storable(_message(error), MAX_MESSAGE_CHARS),
        _storable(_traceback(error), MAX_TRACEBACK_CHARS),
        next(filter(None, map(_fields, _leaves(error))), None),
    )


def timeout_error(message: str, seconds: float, stack: str) -> TaskError:
    """Return the error of a run that exceeded its handler's timeout.

    Args:
        message: What happened.
        seconds: The timeout.
        stack: Where the handler was then. Stored in place of a traceback.
    """
    name = TaskError.HANDLER_TIMEOUT
    text = _storable(f"Timed out at:\n{stack}{name}: {message}\n", MAX_TRACEBACK_CHARS)
    return TaskError(name, message, text, {"timeout_seconds": seconds})


def retryable(error: BaseException, non_retryable: tuple[type[BaseException], ...] = ()) -> bool:
    """Return whether another attempt may succeed.

    It can't after Fail, after an error of `non_retryable`, and after wrong declarations, parameters and
    results. An exception group is retryable if all of its members are.
    """
    return not any(isinstance(leaf, (*_FINAL, *non_retryable)) for leaf in _leaves(error))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the error itself, or all members of an exception group."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


# The following functions catch every Exception. They run code of the application's exceptions (`__str__`,
# `__repr__`, properties), and a run must end even if that code fails.


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - see above
        return "(no message: __str__ failed)"


def _traceback(error: BaseException) -> str:
    try:
        frames = _without_library_frames(error.__traceback__)
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # noqa: BLE001 - see above
        return "(no traceback: formatting failed)"


def _without_library_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the handler on."""
    first = tb
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_RUNTIME_DIRECTORY):
        first = first.tb_next
    return first or tb


def _fields(error: BaseException) -> dict[str, Json] | None:
    """Return the fields that an exception declares. Text replaces a field that can't be stored."""
    try:
        return _read_fields(error)
    except Exception:  # noqa: BLE001 - see above; here, `__durable_fields__` is no list of names
        return None


def _read_fields(error: BaseException) -> dict[str, Json] | None:
    available, fields = MAX_FIELDS_CHARS, {}
    for name, read in islice(_declared(error), MAX_FIELDS):
        field = _field(read)
        available -= len(dumps(field))
        fields[_storable(name, MAX_NAME_CHARS)] = field if available >= 0 else LEFT_OUT
    return fields or None


def _declared(error: BaseException) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the names of the fields, and functions that read them."""
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
        value = _clean(to_jsonable_python(read(), bytes_mode="base64", fallback=repr))
        text = dumps(value)
    except Exception:  # noqa: BLE001 - see above; also for a value that contains itself, or an int of 10,000 digits
        return UNREADABLE
    return value if len(text) <= MAX_FIELD_CHARS else _storable(text, MAX_FIELD_CHARS)


def _clean(value: Json) -> Json:
    """Replace text and numbers that PostgreSQL can't store as JSON."""
    match value:
        case str():
            return _storable(value, MAX_FIELDS_CHARS)
        case float() if not isfinite(value):
            return str(value)
        case list():
            return [_clean(inner) for inner in value]
        case dict():
            return {_clean(str(key)): _clean(inner) for key, inner in value.items()}
        case _:
            return value


def _storable(text: str, length: int) -> str:
    """Return `text` without its middle if it is too long, with NUL and lone surrogates escaped."""
    if len(text) > length:
        end = length * 2 // 3
        text = f"{text[: length - end - 5]} ... {text[-end:]}"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
