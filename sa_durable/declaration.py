"""How the attempts of a handler's tasks are run. It belongs to the code, and is not stored with a task."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

from . import policy
from .errors import InvalidOptions
from .values import HandlerKeywords


class RunKeywords(TypedDict, total=False):
    """How the attempts of a handler's tasks are run.

    Keyword arguments of `handler`, and `__run_defaults__` of a queue. They are not stored with a task, so a
    deploy changes them for existing tasks too.
    """

    timeout: timedelta | None
    """Longest time of one execution of the handler; None for no limit."""

    non_retryable: type[BaseException] | tuple[type[BaseException], ...]
    """Errors that fail the task at once, as Fail does."""


class DeclarationKeywords(HandlerKeywords, RunKeywords, total=False):
    """The keyword arguments of `@BillingTask.handler(...)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """RunKeywords with every default set. Made by `resolve_run`, which checks them."""

    timeout: timedelta | None = None
    """Longest time of one execution of the handler; None for no limit. A sleep ends an execution."""

    non_retryable: tuple[type[BaseException], ...] = ()
    """Errors that fail the task at once, as Fail does."""


def resolve_run(*layers: RunKeywords | None) -> RunOptions:
    """Return the run options of a handler: each of them from the first layer that has it.

    Raises:
        InvalidOptions: An option is unknown or can't work.
    """
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged.update(layer or {})
    if unknown := sorted(merged.keys() - RunKeywords.__annotations__.keys()):
        raise InvalidOptions(
            f"unknown run options {unknown}: there are {sorted(RunKeywords.__annotations__)}"
        )
    if (timeout := merged.get("timeout")) is not None:
        policy.check_duration("timeout", timeout, zero=False)
    errors = merged.get("non_retryable", ())
    errors = errors if isinstance(errors, tuple) else (errors,)
    if not all(isinstance(error, type) and issubclass(error, BaseException) for error in errors):
        raise InvalidOptions(f"non_retryable={errors!r} must be exception classes")
    return RunOptions(timeout=timeout, non_retryable=errors)
