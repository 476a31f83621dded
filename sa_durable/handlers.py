"""Handlers: functions that the workers of a queue run, and calls of handlers that can be spawned."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, update_wrapper
from typing import Any, Generic, NamedTuple, NotRequired, ParamSpec, Required, TypeVar, get_type_hints
from uuid import UUID

from typing_extensions import TypedDict, Unpack

from .annotations import is_exact
from .codec import Coder, NotJson, dumps, require_json, short_repr
from .declaration import RunOptions
from .errors import DeclarationError, InvalidParams
from .values import Json, SpawnKeywords

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_RUN_DEFAULTS = RunOptions()
_NO_OPTIONS: SpawnKeywords = {}


class Call(NamedTuple, Generic[M, R_co]):
    """One call of a handler, checked and encoded. It can be spawned any number of times.

    A NamedTuple, because it is made in a third of the time of a frozen dataclass, and batches make two for
    each task.
    """

    model: type[M]
    """The model of the handler's queue."""

    name: str
    """The name of the task."""

    params_text: str
    """The params, as the JSON text that is stored."""

    defaults: SpawnKeywords = _NO_OPTIONS
    """Spawn options of the handler."""

    options: SpawnKeywords = _NO_OPTIONS
    """Spawn options of this call."""

    @property
    def params(self) -> dict[str, Any]:
        """A copy of the params, as stored."""
        return dict(json.loads(self.params_text))

    def using(self, **options: Unpack[SpawnKeywords]) -> Call[M, R_co]:
        """Return the same call with spawn options of its own, for batches.

        Options of the spawn itself override them. Options that can't work raise InvalidOptions when the call
        is spawned.
        """
        model, name, text, defaults, own = self
        return Call(model, name, text, defaults, {**own, **options} if own else options)

    def __repr__(self) -> str:  # without params, keys and headers, because it may be logged
        return f"Call(model={self.model!r}, name={self.name!r})"


class Handler(Generic[M, P, R]):
    """A function that is registered with a queue, made by `@BillingTask.handler()`.

    Calling the handler calls the function, as tests do. `call` makes a call that can be spawned.

    Args:
        model: The model of the queue.
        fn: The function. Its first parameter is the context.
        name: The name of the handler's tasks.
        options: Default spawn options of the tasks.
        transactional: Whether the handler and its completion are one transaction.
        run_options: How attempts are run.

    Raises:
        DeclarationError: The function doesn't take the context first, or has parameters that can't be stored.
    """

    def __init__(
        self,
        model: type[M],
        fn: Callable[..., Any],
        name: str,
        options: SpawnKeywords,
        *,
        transactional: bool = False,
        run_options: RunOptions = _RUN_DEFAULTS,
    ) -> None:
        self.model, self.fn, self.name, self.options = model, fn, name, options
        self.transactional, self.run_options = transactional, run_options
        self.is_async = inspect.iscoroutinefunction(fn)
        self._names = _parameter_names(fn, name)
        update_wrapper(self, fn)
        caller = inspect.currentframe()
        while caller is not None and caller.f_globals.get("__name__", "").startswith("sa_durable."):
            caller = caller.f_back
        # Types that are local to the declaring function can only be found now, in its frame. Names that the
        # module defines further down are found at the first call.
        with suppress(DeclarationError):
            self._resolve_hints(caller.f_locals if caller else {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function directly, without a task: `charge(ctx, order_id=7)`."""
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<handler {self.name!r} of {self.model.__name__}>"

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[M, R]:
        """Return an immutable call with these arguments, to be spawned.

        Args:
            *args: Positional arguments, without the context.
            **kwargs: Keyword arguments.

        Raises:
            InvalidParams: An argument doesn't match the signature, or can't be stored as JSON. Names the
                argument.
        """
        if args:
            try:
                kwargs = self._signature.bind(*args, **kwargs).arguments  # type: ignore[assignment]  # as if by name
            except TypeError as error:
                raise InvalidParams(f"{self.name}.call(): {error}") from None
        return self._call(kwargs)

    def call_with(self, arguments: Mapping[str, Any]) -> Call[M, R]:
        """Return a call with the arguments of a mapping of names to values. Raises as `call`."""
        if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
            raise InvalidParams(
                f"{self.name}.call_with(): params must be a mapping of parameter names to values"
            )
        return self._call(dict(arguments))

    def _call(self, arguments: dict[str, Any]) -> Call[M, R]:
        try:
            if self._untyped:
                for name in self._untyped & arguments.keys():
                    require_json(arguments[name], name)
            text = self._coder.checked_text(arguments, "params")
        except NotJson as error:
            raise InvalidParams(f"{self.name}.call(): {error}") from error
        return Call(self.model, self.name, text, self.options)

    def encoded(self, arguments: Mapping[str, Any]) -> dict[str, Json]:
        """Return some of the handler's arguments as a task stores them.

        Raises:
            InvalidParams: The handler has no such parameter, or an argument doesn't match it.
        """
        if unknown := sorted(arguments.keys() - set(self._names)):
            raise InvalidParams(
                f"{self.name}() has no parameter {', '.join(unknown)}; "
                f"it has {', '.join(self._names) or 'none'}"
            )
        stored = {}
        for name, value in arguments.items():
            coder = Coder(self._hints.get(name, Any))
            try:
                stored[name] = coder.encode(coder.check(value, name), name)
            except NotJson as error:
                raise InvalidParams(f"{self.name}(): {error}") from error
        return stored

    def task(self, *args: P.args, **kwargs: P.kwargs) -> M:
        """Return a new task as an object of the queue's model, with every default set.

        Adding it to a session spawns it when the session flushes. To spawn with a key, use
        `Durable(session).spawn`.

        Args:
            *args: Positional arguments, as for `call`.
            **kwargs: Keyword arguments, as for `call`.

        Raises:
            InvalidParams: As `call`.
        """
        call = self.call(*args, **kwargs)
        made: M = self.model.__new_task__(call)  # type: ignore[attr-defined]  # M is a DurableTask, a layer above
        return made

    def arguments(self, params: Json, *, task_id: UUID | None = None) -> dict[str, Any]:
        """Return stored params as the arguments that the function takes.

        Args:
            params: The params of a task.
            task_id: Its id, for the error.

        Raises:
            InvalidParams: The params no longer match the function, because another version of the code stored
                them.
        """
        try:
            decoded: dict[str, Any] = self._coder.decode(params)
        except NotJson as error:
            whose = "" if task_id is None else f" of task {task_id}"
            raise InvalidParams(
                f"stored params{whose} no longer match {self.name}(): {error}. "
                "Deploy a handler that accepts them, then retry the task"
            ) from error
        return decoded

    @cached_property
    def result_coder(self) -> Coder:
        """Encodes and decodes the handler's results, by its return annotation."""
        return Coder(self._hints.get("return", Any))

    @cached_property
    def _signature(self) -> inspect.Signature:
        signature = inspect.signature(self.fn)
        return signature.replace(parameters=list(signature.parameters.values())[1:])  # without ctx

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return self._resolve_hints({})

    def _resolve_hints(self, namespace: Mapping[str, Any]) -> dict[str, Any]:
        try:
            types = get_type_hints(self.fn, localns=dict(namespace), include_extras=True)
        except NameError as error:
            raise DeclarationError(
                f"handler {self.name!r}: annotations can't be resolved: {error}. Import the name at run time"
            ) from error
        self.__dict__["_hints"] = types
        return types

    @cached_property
    def _untyped(self) -> frozenset[str]:
        return frozenset(n for n in self._names if self._hints.get(n, Any) is Any)

    @cached_property
    def _coder(self) -> Coder:
        fields = {}
        for name in self._names:
            required = self._signature.parameters[name].default is inspect.Parameter.empty
            type_ = self._hints.get(name, Any)
            fields[name] = Required[type_] if required else NotRequired[type_]
        shape = TypedDict(f"{self.name}_params", fields)  # type: ignore[misc]  # made at run time
        exact = all(is_exact(self._hints.get(name, Any)) for name in self._names)
        shape.__pydantic_config__ = {"extra": "forbid", "arbitrary_types_allowed": False}  # type: ignore[attr-defined]  # pydantic reads it
        return Coder(shape, exact=exact)


def _parameter_names(fn: Callable[..., Any], name: str) -> tuple[str, ...]:
    parameters = list(inspect.signature(fn).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if not parameters or parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, kinds[0]):
        raise DeclarationError(
            f"handler {name!r}: must take the context first: def {name}(ctx: TaskContext, ...)"
        )
    for parameter in parameters[1:]:
        if parameter.kind not in kinds:
            raise DeclarationError(
                f"handler {name!r}: parameter {parameter} can't be stored by name. "
                "Use a parameter that can be passed by keyword"
            )
    return tuple(p.name for p in parameters[1:])


def call_by_name(
    model: type[M], name: str, params: Mapping[str, Any], handler: Handler[M, ..., Any] | None
) -> Call[M, Any]:
    """Return a call for callers that don't import the handler.

    Args:
        model: The model of the queue.
        name: The name of the task.
        params: The params of the task.
        handler: The handler of this name, if this process has it: it checks the params.

    Raises:
        InvalidParams: A task can't have this name or these params.
    """
    if handler is not None:
        return handler.call_with(params)
    check_name(name)
    if not isinstance(params, Mapping):
        raise InvalidParams(f"{name}: params must be a mapping of parameter names to values")
    try:
        stored = dict(params)
        require_json(stored, "params")
        return Call(model, name, dumps(stored, place="params"))
    except NotJson as error:
        raise InvalidParams(f"{name}: {error}") from error


def check_name(name: str) -> str:
    """Return `name` if a task can have it. Raises InvalidParams."""
    if not isinstance(name, str) or not 1 <= len(name) <= 255 or "\0" in name or not name.isprintable():
        raise InvalidParams(f"task name {short_repr(name)}: must be 1 to 255 printable characters")
    return name
