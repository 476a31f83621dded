"""What is stored of an exception."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from ..errors import DeclarationError, InvalidParams, InvalidResult
from ..values import TaskError

MESSAGE_LENGTH = 4 * 1024
TRACEBACK_LENGTH = 16 * 1024
_HERE = str(Path(__file__).parent)


def describe(error: BaseException) -> TaskError:
    """The type, message and traceback of an error, bounded in size and always storable."""
    return TaskError(
        _storable(type(error).__qualname__, 255),
        _storable(_message(error), MESSAGE_LENGTH),
        _storable(_traceback(error), TRACEBACK_LENGTH),
    )


def retryable(error: BaseException) -> bool:
    """Whether another attempt can do better. What is declared, called or returned in a wrong way stays so."""
    return not isinstance(error, InvalidParams | InvalidResult | DeclarationError)


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


def _storable(text: str, length: int) -> str:
    """`text` with its middle left out if it is too long; NUL and lone surrogates escaped."""
    if len(text) > length:
        end = length * 2 // 3
        text = f"{text[: length - end - 5]} ... {text[-end:]}"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
