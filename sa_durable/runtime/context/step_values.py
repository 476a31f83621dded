"""How the values of steps become JSON and back: by the annotation of a function, or by `returns`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import lru_cache, partial
from types import FunctionType
from typing import Any, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from ...codec import Coder, NotJson, dumps
from ...errors import DeclarationError, InvalidResult
from ...values import Json

UNTYPED = Coder(Any)
"""The coder of values without an annotation: JSON's own types, unchanged."""

_cached_coder = lru_cache(512)(Coder)

_return_types: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Return annotations by function, because resolving them is slow."""


def coder_for_function(fn: Callable[..., Any], returns: Any) -> Coder:
    """Return the coder for the values of a step.

    Args:
        fn: The step's function. Its return annotation decides if `returns` is None; a function without one
            returns plain JSON.
        returns: The type that the caller gave, or None.

    Raises:
        DeclarationError: The annotation can't be resolved.
    """
    return coder_for_type(_return_type(fn) if returns is None else returns)


def coder_for_type(annotation: Any) -> Coder:
    """Return the coder for values of this type."""
    if annotation is Any:
        return UNTYPED
    try:
        return _cached_coder(annotation)
    except TypeError:  # the annotation isn't hashable
        return Coder(annotation)


def unwrap_callable(fn: Any) -> Any:
    """Return the function that a call of `fn` runs: of a partial, or of an object with `__call__`."""
    while isinstance(fn, partial):
        fn = fn.func
    return fn if inspect.isroutine(fn) else getattr(fn, "__call__", fn)  # noqa: B004 - the method itself is wanted


def _return_type(fn: Callable[..., Any]) -> Any:
    if not isinstance(fn, FunctionType):
        fn = unwrap_callable(fn)
        fn = getattr(fn, "__func__", fn)
    try:
        return _return_types[fn]
    except (KeyError, TypeError):  # unknown yet, or a built-in function, which can't be referenced weakly
        returns = _read_return_type(fn)
        with suppress(TypeError):
            _return_types[fn] = returns
        return returns


def _read_return_type(fn: Callable[..., Any]) -> Any:
    if "return" not in getattr(fn, "__annotations__", ()):
        return Any
    try:
        returns = get_type_hints(fn, include_extras=True)["return"]
    except NameError as error:
        raise DeclarationError(
            f"step function {fn.__qualname__}: annotations can't be resolved: {error}. "
            "Import the name at run time, or give returns=..."
        ) from error
    if get_origin(returns) in (Awaitable, Coroutine):
        returns = get_args(returns)[-1]
    return type(None) if returns is None else returns


def encode(coder: Coder, value: Any, step: str) -> str:
    """Return the JSON text of a step's value.

    Raises:
        InvalidResult: The value can't be stored as JSON.
    """
    try:
        return dumps(coder.encode(value, "value"), place="value")
    except NotJson as error:
        raise InvalidResult(f"step {step!r}: {error}") from error


def decode(coder: Coder, saved: Json, step: str) -> Any:
    """Return the value that the handler gets for a checkpoint.

    Raises:
        InvalidResult: The saved value doesn't match the step's type. Another version of the code saved it.
    """
    try:
        return coder.decode(saved, "saved value")
    except NotJson as error:
        raise InvalidResult(
            f"step {step!r}: {error}. Deploy code that accepts the saved value, then retry the task"
        ) from error
