"""Handlers: plain functions that a queue's workers run, and calls of them that can be spawned."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import cached_property, update_wrapper
from typing import (
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    NotRequired,
    ParamSpec,
    Required,
    TypeVar,
    get_type_hints,
    overload,
)

from typing_extensions import TypedDict, Unpack

from . import policy, telemetry
from .annotations import is_exact
from .codec import Coder, NotJson, check_plain, dumps, shown
from .declaration import RunOptions
from .errors import DeclarationError, InvalidOptions, InvalidParams
from .spawn_options import resolve
from .values import Json, SpawnKeywords

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
C = TypeVar("C")
_RUN_DEFAULTS = RunOptions()


_NO_OPTIONS: SpawnKeywords = {}


class Call(NamedTuple, Generic[M, R_co]):
    """One call of a handler, checked and encoded, ready to be spawned any number of times.

    A tuple, as batches make two for each task: it is made in a third of the time of a frozen dataclass.
    """

    model: type[M]
    name: str
    params_text: str  # as stored, as JSON
    defaults: SpawnKeywords = _NO_OPTIONS  # the handler's
    options: SpawnKeywords = _NO_OPTIONS  # this call's own

    @property
    def params(self) -> dict[str, Any]:
        """A copy of the params, as stored."""
        return dict(json.loads(self.params_text))

    def using(self, **options: Unpack[SpawnKeywords]) -> Call[M, R_co]:
        """The same call with spawn options of its own, for batches: those given to spawn itself win over them.

        Raises InvalidOptions when it is spawned.
        """
        model, name, text, defaults, own = self
        return Call(model, name, text, defaults, {**own, **options} if own else options)

    def __repr__(self) -> str:  # without params, key or headers: it may end up in a log
        return f"Call(model={self.model!r}, name={self.name!r})"


class Handler(Generic[M, P, R]):
    """A function registered with a queue. Called directly, it is the plain function (tests do that)."""

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
        # Types that are local to the declaring function are found in its frame, now or never; a name that its
        # module defines further down is found later.
        with suppress(DeclarationError):
            self._resolve_hints(caller.f_locals if caller else {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, durably nothing: `charge(ctx, order_id=7)`."""
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<handler {self.name!r} of {self.model.__name__}>"

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[M, R]:
        """An immutable call with these arguments. Raises InvalidParams, naming the argument and what it should be."""
        if args:
            try:
                kwargs = self._signature.bind(*args, **kwargs).arguments  # type: ignore[assignment]  # as if by name
            except TypeError as error:
                raise InvalidParams(f"{self.name}: {error}") from None
        return self._call(kwargs)

    def call_with(self, arguments: Mapping[str, Any]) -> Call[M, R]:
        """As `call`, from a mapping of arguments."""
        if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
            raise InvalidParams(f"{self.name}: params must be a mapping of parameter names to values")
        return self._call(dict(arguments))

    def _call(self, arguments: dict[str, Any]) -> Call[M, R]:
        try:
            if self._untyped:
                for name in self._untyped & arguments.keys():
                    check_plain(arguments[name], name)
            text = self._coder.text(arguments, self.name, "params")
        except NotJson as error:
            raise InvalidParams(f"{self.name}: {error}") from error
        return Call(self.model, self.name, text, self.options)

    def encoded(self, arguments: Mapping[str, Any]) -> dict[str, Json]:
        """Some of its arguments, as a task stores them. Raises InvalidParams."""
        if unknown := sorted(arguments.keys() - set(self._names)):
            raise InvalidParams(f"{self.name} has no parameter {', '.join(unknown)}")
        stored = {}
        for name, value in arguments.items():
            coder = Coder(self._hints.get(name, Any))
            try:
                stored[name] = coder.encode(coder.check(value, name), name)
            except NotJson as error:
                raise InvalidParams(f"{self.name}: {error}") from error
        return stored

    def task(self, *args: P.args, **kwargs: P.kwargs) -> M:
        """A new task as an object of the queue's model, with every default in place: adding it to a session spawns
        it at flush, in the unit of work's order. For a task with a key use `Durable(session).spawn`.

        Raises InvalidParams, as `call`.
        """
        call = self.call(*args, **kwargs)
        made: M = self.model.__new_task__(call)  # type: ignore[attr-defined]  # M is a DurableTask, a layer above
        return made

    def arguments(self, params: Json) -> dict[str, Any]:
        """The stored params as the arguments that the function takes. Raises InvalidParams if they no longer fit."""
        try:
            decoded: dict[str, Any] = self._coder.decode(params, "params")
        except NotJson as error:
            raise InvalidParams(f"stored params don't fit {self.name}: {error}") from error
        return decoded

    @cached_property
    def result_coder(self) -> Coder:
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
            hints = get_type_hints(self.fn, localns=dict(namespace), include_extras=True)
        except NameError as error:
            raise DeclarationError(f"handler {self.name!r}: {error}, which its annotations use") from error
        self.__dict__["_hints"] = hints
        return hints

    @cached_property
    def _untyped(self) -> frozenset[str]:
        return frozenset(n for n in self._names if self._hints.get(n, Any) is Any)

    @cached_property
    def _coder(self) -> Coder:
        fields = {}
        for name in self._names:
            required = self._signature.parameters[name].default is inspect.Parameter.empty
            hint = self._hints.get(name, Any)
            fields[name] = Required[hint] if required else NotRequired[hint]
        shape = TypedDict(f"{self.name}_params", fields)  # type: ignore[misc]  # made at run time
        exact = all(is_exact(self._hints.get(name, Any)) for name in self._names)
        shape.__pydantic_config__ = {"extra": "forbid", "arbitrary_types_allowed": False}  # type: ignore[attr-defined]  # pydantic reads it
        return Coder(shape, exact=exact)


def _parameter_names(fn: Callable[..., Any], name: str) -> tuple[str, ...]:
    parameters = list(inspect.signature(fn).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if not parameters or parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, kinds[0]):
        raise DeclarationError(
            f"handler {name!r} must take the context first: def {name}(ctx: TaskContext, ...)"
        )
    for parameter in parameters[1:]:
        if parameter.kind not in kinds:
            raise DeclarationError(
                f"handler {name!r}: parameter {parameter} can't be stored by name; use plain or keyword-only ones"
            )
    return tuple(p.name for p in parameters[1:])


def call_by_name(
    model: type[M], name: str, params: Mapping[str, Any], handler: Handler[M, ..., Any] | None
) -> Call[M, Any]:
    """A call for callers that don't import the handler; checked against its signature where it is known here."""
    if handler is not None:
        return handler.call_with(params)
    check_name(name)
    if not isinstance(params, Mapping):
        raise InvalidParams(f"{name}: params must be a mapping of parameter names to values")
    try:
        stored = dict(params)
        check_plain(stored, "params")
        return Call(model, name, dumps(stored, what="params"))
    except NotJson as error:
        raise InvalidParams(f"{name}: {error}") from error


def check_name(name: str) -> str:
    """`name` itself, if a task can have it. Raises InvalidParams."""
    if not isinstance(name, str) or not 1 <= len(name) <= 255 or "\0" in name or not name.isprintable():
        raise InvalidParams(f"task name {shown(name)}: 1 to 255 printable characters")
    return name


def spawn_headers(queue: str, name: str, headers: Mapping[str, Json] | None) -> Mapping[str, Json] | None:
    """The headers that a task is spawned with: what `telemetry.before_spawn` hooks make of its options'."""
    if not telemetry.spawn_hooks:
        return headers
    return telemetry.changed_headers(queue, name, headers, check=_check_headers)


def _check_headers(headers: Mapping[str, Json]) -> None:
    policy.check_header_names(headers)
    encode_headers(headers)


def encode_headers(headers: Mapping[str, Json] | None) -> str | None:
    """Headers as JSON text. Raises InvalidOptions."""
    if not headers:
        return None
    try:
        stored = dict(headers)
        check_plain(stored, "headers")
        return dumps(stored, what="headers", limit=64 * 1024)
    except NotJson as error:
        raise InvalidOptions(str(error)) from error


class Decorator(Generic[M]):
    """What `BillingTask.handler(...)` returns: registers the function it is given."""

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
        name = check_name(self._name or fn.__name__)
        resolve({**self._options, "idempotency_key": "checks the rest"})  # raises here, not at each spawn
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
