"""The decorator that registers handlers with a queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .declaration import RunOptions
from .handlers import Handler, check_name
from .spawn_options import resolve
from .values import SpawnKeywords

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


class Decorator(Generic[M]):
    """What `BillingTask.handler(...)` returns: makes a Handler of a function and registers it.

    Args:
        model: The model of the queue.
        register: Adds the handler to the queue.
        name: The name of the handler's tasks; None for the name of the function.
        options: Default spawn options.
        transactional: Whether the handler and its completion are one transaction.
        run_options: How attempts are run.
    """

    def __init__(
        self,
        model: type[M],
        register: Callable[[Handler[M, ..., Any]], None],
        name: str | None,
        options: SpawnKeywords,
        *,
        transactional: bool,
        run_options: RunOptions,
    ) -> None:
        self._model, self._register, self._name, self._options = model, register, name, options
        self._transactional, self._run_options = transactional, run_options

    @overload
    def __call__(self, fn: Callable[Concatenate[C, P], Awaitable[R]]) -> Handler[M, P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[C, P], R]) -> Handler[M, P, R]: ...
    def __call__(self, fn: Callable[Concatenate[C, P], Any]) -> Handler[M, P, Any]:
        """Register `fn`, whose first parameter is the context, and return its handler.

        Raises:
            DeclarationError: The function's parameters can't be stored, or the queue has another handler of
                the name.
            InvalidParams: A task can't have this name.
            InvalidOptions: A default spawn option can't work.
        """
        name = check_name(self._name or fn.__name__)
        # With any key, the options that need one are checked too: here, not at each spawn.
        resolve({**self._options, "idempotency_key": "any"})
        handler: Handler[M, P, Any] = Handler(
            self._model,
            fn,
            name,
            self._options,
            transactional=self._transactional,
            run_options=self._run_options,
        )
        self._register(handler)
        return handler
