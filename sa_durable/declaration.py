"""What a handler's declaration says about its runs. Tasks don't carry it: it belongs to the code."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

from . import policy
from .errors import InvalidOptions
from .values import HandlerKeywords


class RunKeywords(TypedDict, total=False):
    """How the attempts of a handler's tasks are run: keyword arguments of `handler`, and `__run_defaults__` of a queue.

    They belong to the code and are not stored with a task: a deploy changes them for waiting tasks, too.
    """

    timeout: timedelta | None
    non_retryable: type[BaseException] | tuple[type[BaseException], ...]


class DeclarationKeywords(HandlerKeywords, RunKeywords, total=False):
    """The keyword arguments of `@BillingTask.handler(...)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """RunKeywords with every default in place. Made by `resolve_run`, which checks it."""

    timeout: timedelta | None = None  # for one execution of the handler: sleeps end one; None: no limit
    non_retryable: tuple[type[BaseException], ...] = ()  # errors that end a task at once, as Fail does


def resolve_run(*layers: RunKeywords | None) -> RunOptions:
    """How a handler's attempts are run: each field from the first layer that has it. Raises InvalidOptions."""
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged.update(layer or {})
    if unknown := sorted(merged.keys() - RunKeywords.__annotations__.keys()):
        raise InvalidOptions(f"unknown run options {unknown}: see RunKeywords for what there is")
    if (timeout := merged.get("timeout")) is not None:
        policy.check_duration("timeout", timeout, zero=False)
    errors = merged.get("non_retryable", ())
    errors = errors if isinstance(errors, tuple) else (errors,)
    if not all(isinstance(error, type) and issubclass(error, BaseException) for error in errors):
        raise InvalidOptions(f"non_retryable={errors!r} must be exception classes")
    return RunOptions(timeout=timeout, non_retryable=errors)
