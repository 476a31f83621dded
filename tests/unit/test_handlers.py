"""Handlers are plain functions; calls of them are checked where they are made, and come back as they were."""

from __future__ import annotations

import copy
import pickle
import typing
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeVar
from uuid import UUID

import pytest
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy.orm import DeclarativeBase
from typing_extensions import TypeAliasType, TypedDict

from sa_durable import (
    DeclarationError,
    Durable,
    DurableTask,
    InvalidOptions,
    InvalidParams,
    NoRetry,
    once_key,
)
from sa_durable.annotations import is_exact
from sa_durable.codec import Coder, dumps
from tests.apps import Line
from tests.shop import BillingTask, charge


class Base(DeclarativeBase):
    pass


class WorkTask(DurableTask, Base):
    """A queue whose handlers are declared by these tests, each with a name of its own."""

    __queue__ = "work"


@pytest.fixture(autouse=True)
def _forget_handlers():
    yield
    for name in set(WorkTask.__handlers__) - {"module_level"}:
        del WorkTask.__handlers__[name]


class Address(BaseModel):
    street: str
    since: date | None = None


# Types that leave something open, under names that hide it
T = TypeVar("T")
Named = TypeAliasType("Named", dict[str, Any])
NamedList = TypeAliasType("NamedList", list[T], type_params=(T,))


class Box(BaseModel, Generic[T]):
    inside: T


class Open(BaseModel, extra="allow"):
    known: int = 1


class OpenDict(TypedDict, total=False):
    __pydantic_config__ = {"extra": "allow"}  # type: ignore[misc]  # noqa: RUF012 - as pydantic wants it
    known: int


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


class Size(TypedDict, total=False):
    width: int
    unit: Literal["mm", "in"]


OrderId = NewType("OrderId", int)
EAST = timezone(timedelta(hours=5, minutes=30))


@WorkTask.handler()
def module_level(ctx: object, order_id: int, *, note: str = "") -> str:
    return f"{order_id}{note}"


def _refused(name: str, complaint: str) -> Any:
    return pytest.raises(InvalidParams, match=rf"(?s)^{name}\.call(_with)?\(\): .*{complaint}")


# Declarations


def test_handler_can_be_called_like_its_function():
    assert module_level(None, 7, note="!") == "7!"
    assert module_level.__name__ == "module_level"
    assert module_level.__doc__ is module_level.fn.__doc__
    assert module_level.__wrapped__ is module_level.fn
    assert repr(module_level) == "<handler 'module_level' of WorkTask>"


def test_handler_is_known_by_its_name_or_the_one_it_is_given():
    @WorkTask.handler("other name")
    def work(ctx): ...

    assert WorkTask.__handlers__["other name"] is work
    assert "work" not in WorkTask.__handlers__
    assert work.call().name == "other name"


@pytest.mark.parametrize("is_async", [True, False])
def test_handler_knows_whether_it_is_a_coroutine_function(is_async):
    async def later(ctx): ...

    def now(ctx): ...

    assert WorkTask.handler("x")(later if is_async else now).is_async is is_async


def _no_parameters(): ...
def _only_arguments(*args): ...
def _keyword_context(*, ctx): ...
def _more_arguments(ctx, *rest): ...
def _more_keywords(ctx, **rest): ...
def _positional_only(ctx, order_id, /): ...


@pytest.mark.parametrize(
    "function, complaint",
    [
        (_no_parameters, "must take the context first"),
        (_only_arguments, "must take the context first"),
        (_keyword_context, "must take the context first"),
        (_more_arguments, r"parameter \*rest can't be stored by name"),
        (_more_keywords, r"parameter \*\*rest can't be stored by name"),
        (_positional_only, "parameter order_id can't be stored by name"),
    ],
)
def test_signature_that_can_not_be_stored_is_refused(function, complaint):
    with pytest.raises(DeclarationError, match=f"handler '{function.__name__}'.*{complaint}"):
        WorkTask.handler()(function)
    assert function.__name__ not in WorkTask.__handlers__


def test_context_may_be_positional_only():
    @WorkTask.handler()
    def work(ctx, /, order_id: int): ...

    assert work.call(7).params == {"order_id": 7}


@pytest.mark.parametrize("name", ["x" * 256, "a\0b", "a\nb", "\ud800"])
def test_name_that_can_not_be_one_is_refused(name):
    with pytest.raises(InvalidParams, match=r"task name .*must be 1 to 255 printable"):
        WorkTask.handler(name)(_named)


def _named(ctx): ...


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"retry": "often"}, "retry='often'"),
        ({"hold": "always"}, "hold='always' must be one of"),
        ({"key_ttl": timedelta(1)}, "key_ttl needs"),
        ({"headers": {"durable:x": 1}}, "'durable:x'"),
        ({"max_tries": 1}, r"unknown spawn options \['max_tries'\]"),
    ],
)
def test_invalid_options_are_refused_at_declaration(options, complaint):
    with pytest.raises(InvalidOptions, match=complaint):
        WorkTask.handler(**options)(_named)
    assert "_named" not in WorkTask.__handlers__


def test_second_handler_of_a_name_is_refused():
    WorkTask.handler("taken")(_named)
    with pytest.raises(
        DeclarationError, match=r"handler 'taken' already: .*_named\. Give one of them another name"
    ):
        WorkTask.handler("taken")(_positional_context)


def _positional_context(ctx, /): ...


def test_reloaded_module_replaces_its_handlers():
    def load():
        @WorkTask.handler()
        def reloaded(ctx): ...

        return reloaded

    first, second = load(), load()
    assert WorkTask.__handlers__["reloaded"] is second is not first


def test_queues_have_handlers_of_their_own():
    assert "charge" in BillingTask.__handlers__
    assert "charge" not in WorkTask.__handlers__


# Calls


def test_call_takes_arguments_as_the_function_does():
    assert module_level.call(7).params == {"order_id": 7}
    assert module_level.call(order_id=7, note="x").params == {"order_id": 7, "note": "x"}
    assert module_level.call_with({"order_id": 7}) == module_level.call(7)


@pytest.mark.parametrize(
    "args, kwargs, complaint",
    [
        ((), {}, "order_id"),
        ((7, "x"), {}, "positional argument"),
        ((7,), {"order_id": 8}, "order_id"),
        ((7,), {"order": 8}, "order"),
        ((), {"order_id": 7, "order": 8}, "order"),
        ((), {"order_id": "seven"}, r"order_id: .*valid integer"),
        ((None,), {}, r"order_id: .*valid integer"),
        ((7.5,), {}, r"order_id: "),
        ((7,), {"note": 3}, r"note: .*valid string"),
    ],
)
def test_call_with_other_arguments_than_the_signature_is_refused(args, kwargs, complaint):
    with _refused("module_level", complaint):
        module_level.call(*args, **kwargs)


@pytest.mark.parametrize("arguments", [None, [("order_id", 7)], "x", {1: 2}])
def test_arguments_must_be_a_mapping_of_names(arguments):
    with _refused("module_level", "params must be a mapping of parameter names"):
        module_level.call_with(arguments)


def test_default_of_a_parameter_is_not_stored():
    assert charge.call(7).params == {"order_id": 7}
    assert charge.arguments({"order_id": 7}) == {"order_id": 7}


def test_call_is_immutable_and_keeps_its_own_copy():
    lines = [Line("a", Decimal(1))]

    @WorkTask.handler()
    def work(ctx, lines: list[Line]): ...

    call = work.call(lines)
    lines.clear()
    assert len(call.params["lines"]) == 1
    with pytest.raises(AttributeError):
        call.name = "other"


def test_params_text_is_the_params():
    call = charge.call(7, Decimal("1.50"))
    assert call.params_text == dumps(call.params) == '{"order_id":7,"amount":"1.50"}'


def test_calls_with_other_params_differ():
    assert charge.call(7) == charge.call(7) != charge.call(8)


# Types


@pytest.mark.parametrize(
    "annotation, value, stored",
    [
        (int, 2**70, 2**70),
        (int, "7", 7),  # lax: the stored form is the parameter's type
        (float, 1.5, 1.5),
        (float, 1, 1.0),
        (bool, True, True),
        (str, "😀", "😀"),
        (str | None, None, None),
        (int | str, "7", "7"),
        (Decimal, Decimal("10.50"), "10.50"),
        (Decimal, Decimal("1E+30"), "1E+30"),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02T03:04:05.000006Z"),
        (datetime, datetime(2026, 1, 2, 3, 4, tzinfo=EAST), "2026-01-02T03:04:00+05:30"),
        (date, date(2026, 1, 2), "2026-01-02"),
        (time, time(3, 4), "03:04:00"),
        (timedelta, timedelta(minutes=90), "PT1H30M"),
        (UUID, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour, Colour.RED, "red"),
        (Level, Level.HIGH, 3),
        (Literal["a", 1], 1, 1),
        (bytes, b"text", "text"),
        (OrderId, OrderId(7), 7),
        (PurePosixPath, PurePosixPath("/a/b"), "/a/b"),
        (Point, Point(1, 2), [1, 2]),
        (tuple[int, str], (1, "a"), [1, "a"]),
        (tuple[Decimal, ...], (Decimal(1),), ["1"]),
        (list[UUID], [UUID(int=2)], ["00000000-0000-0000-0000-000000000002"]),
        (set[int], {3}, [3]),
        (dict[int, date], {1: date(2026, 1, 1)}, {"1": "2026-01-01"}),
        (dict[UUID, int], {UUID(int=3): 1}, {"00000000-0000-0000-0000-000000000003": 1}),
        (Line, Line("a", Decimal(1), frozenset({"x"})), {"sku": "a", "price": "1", "tags": ["x"]}),
        (Address, Address(street="s", since=date(2026, 1, 1)), {"street": "s", "since": "2026-01-01"}),
        (Size, {"width": 3, "unit": "mm"}, {"width": 3, "unit": "mm"}),
        (list[Line | Address], [Address(street="s")], [{"street": "s", "since": None}]),
        (Annotated[int, Field(ge=1)], 1, 1),
    ],
    ids=str,
)
def test_typed_argument_comes_back_from_its_stored_form(annotation, value, stored):
    def work(ctx, x): ...

    work.__annotations__["x"] = annotation
    handler = WorkTask.handler()(work)
    call = handler.call(value)
    assert call.params == {"x": stored}
    (back,) = handler.arguments(call.params).values()
    expected = int(value) if (annotation, value) == (int, "7") else value
    assert back == expected
    assert type(back) is type(expected) or annotation is float


class Shout(StrEnum):
    A = "a"


class Number(int): ...


@pytest.mark.parametrize(
    "annotation, value",
    [
        (int, True),
        (int, Level.HIGH),
        (int, Number(7)),
        (int, 2.0),
        (int, -(10**4000)),
        (str, Shout.A),
        (str, 'a"\\\x7f\u2028\n\0'[:-1]),
        (str, "NaN"),
        (str, "-Infinity"),
        (str, "x" * 10_000),
        (float, -0.0),
        (float, 1e16),
        (float, 5e-324),
        (float, 0.1 + 0.2),
        (float, "1e3"),
        (float | None, None),
        (int | float, 1.0),
        (float | str, True),
        (Decimal, 1.25),
        (Decimal, Decimal("-0.00")),
        (datetime, datetime(1, 1, 1, tzinfo=EAST)),
        (datetime, "2026-01-02T03:04:05.6Z"),
        (datetime | date, date(2026, 1, 2)),
        (date | datetime, datetime(2026, 1, 2, tzinfo=UTC)),
        (time, time(1, 2, 3, 4, tzinfo=UTC)),
        (timedelta, timedelta(days=-1, microseconds=1)),
        (UUID, "00000000-0000-0000-0000-000000000001"),
        (list[float], [1, 2.5]),
        (dict[str, list[int | None]], {Shout.A: [1, None], "": []}),
        (list[int] | dict[str, str], {"a": "b"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_encoded_in_one_step_is_what_checking_and_encoding_come_to(annotation, value):
    def work(ctx, x): ...

    work.__annotations__["x"] = annotation
    stepwise = Coder(annotation)
    assert is_exact(annotation)
    expected = stepwise.encode(stepwise.check(value, "x"), "x")
    assert repr(WorkTask.handler()(work).call(value).params) == repr({"x": expected})


@pytest.mark.parametrize(
    "argument",
    [
        {"fraction": float("nan")},
        {"fraction": float("inf")},
        {"fractions": [0.0, float("-inf")]},
        {"text": "\0"},
        {"text": "\ud800"},
        {"number": 10**5000},
    ],
    ids=["nan", "inf", "-inf", "NUL", "surrogate", "digits"],
)
def test_what_can_not_be_stored_is_refused_in_one_step_all_the_same(argument):
    @WorkTask.handler()
    def work(
        ctx, number: int = 0, text: str = "", fraction: float = 0.0, fractions: list[float] | None = None
    ): ...

    with pytest.raises(InvalidParams):
        work.call(**argument)


@pytest.mark.parametrize(
    "annotation",
    [
        Any,
        object,
        Line,
        Address,
        Colour,
        bytes,
        set[int],
        Annotated[int, Field(ge=1)],
        list,
        typing.List,  # noqa: UP006 - what is meant
        typing.Dict,  # noqa: UP006 - what is meant
        dict[int, int],
        tuple[int, str],
    ],
    ids=str,
)
def test_what_may_be_written_in_its_own_way_is_encoded_step_by_step(annotation):
    assert not is_exact(annotation)
    assert not is_exact(list[annotation])


def test_result_comes_back_from_its_stored_form():
    @WorkTask.handler()
    async def work(ctx) -> list[Line]: ...

    stored = work.result_coder.encode([Line("a", Decimal("1.0"))], "result")
    assert stored == [{"sku": "a", "price": "1.0", "tags": []}]
    assert work.result_coder.decode(stored, "result") == [Line("a", Decimal("1.0"))]


def test_value_outside_of_what_the_annotation_allows_is_refused():
    def even(value: int) -> int:
        if value % 2:
            raise ValueError("it is odd")
        return value

    @WorkTask.handler()
    def work(ctx, n: Annotated[int, AfterValidator(even)], size: Size): ...

    with _refused("work", r"n: .*it is odd"):
        work.call(3, {"width": 1})
    with _refused("work", r"size\.unit: .*'mm' or 'in'"):
        work.call(2, {"unit": "km"})


def test_stored_params_that_no_longer_fit_say_so():
    with pytest.raises(
        InvalidParams,
        match=r"(?s)stored params no longer match module_level\(\): .*order_id: .*required.*retry the task",
    ):
        module_level.arguments({"order": 7})
    with pytest.raises(InvalidParams, match=f"stored params of task {UUID(int=1)} no longer match"):
        module_level.arguments({"order": 7}, task_id=UUID(int=1))


def test_bytes_that_are_no_text_are_refused():
    @WorkTask.handler()
    def work(ctx, raw: bytes): ...

    with _refused("work", "invalid utf-8"):
        work.call(b"\xff")


def test_forward_reference_is_resolved_at_the_first_call():
    assert early.call(Later(1)).params == {"later": {"n": 1}}
    assert early.arguments({"later": {"n": 1}}) == {"later": Later(1)}


class EarlyTask(DurableTask, Base):
    __queue__ = "early"


@EarlyTask.handler()
def early(ctx: object, later: Later) -> None: ...


@dataclass
class Later:
    n: int


def test_type_that_is_local_to_the_declaring_function_is_found():
    @dataclass
    class Local:
        n: int

    @WorkTask.handler()
    def work(ctx, local: Local) -> Local: ...

    assert work.arguments(work.call(Local(1)).params) == {"local": Local(1)}
    assert work.result_coder.decode({"n": 2}, "result") == Local(2)


def test_type_that_does_not_exist_is_named():
    @WorkTask.handler()
    def work(ctx, x: Nowhere): ...  # noqa: F821 - the point

    with pytest.raises(
        DeclarationError, match="handler 'work': annotations can't be resolved: name 'Nowhere' is not defined"
    ):
        work.call(1)


def test_type_without_a_json_form_is_named():
    @WorkTask.handler()
    def work(ctx, x: Engine): ...

    with _refused("work", "Engine"):
        work.call(Engine())


class Engine:
    """An object that pydantic knows nothing about."""


# Values that can't be stored


@pytest.mark.parametrize(
    "value, complaint",
    [
        ({1: "a"}, "x has the key 1: JSON keys are strings"),
        ({"a": {None: 1}}, "x.a has the key None"),
        ({"a": [float("nan")]}, r"x\.a\[0\] is nan"),
        (float("inf"), "x is inf"),
        ("a\0b", "x has a NUL character"),
        ({"a": "\ud800"}, "x.a has a lone surrogate"),
        (Decimal(1), "x is of type Decimal, which has no JSON form here: annotate it with its type"),
        ({1, 2}, "x is of type set"),
        ("x" * 1024**2, "params takes 10485.. bytes as JSON; 1048576 are allowed"),
    ],
)
@pytest.mark.parametrize("annotated", [False, True])
def test_untyped_argument_must_be_storable_as_it_is(value, complaint, annotated):
    def work(ctx, x): ...

    if annotated:
        work.__annotations__["x"] = Any
    with _refused("work", complaint):
        WorkTask.handler()(work).call(value)


@pytest.mark.parametrize(
    "annotation, value, complaint",
    [
        (float, float("nan"), r"params\.x is nan"),
        (list[float], [1.0, float("-inf")], r"params\.x\[1\] is -inf"),
        (str, "a\0b", r"params\.x has a NUL"),
        (Address, Address(street="\0"), r"params\.x\.street has a NUL"),
        (dict[str, int], {"\0": 1}, r"params\.x key '\\x00' has a NUL"),
        (str, "\ud800", "surrogate"),
        (str, "x" * 1024**2, "1048576 are allowed"),
        (dict[str, Any], {"a": float("nan")}, "nan"),
        (list, [float("inf")], "inf"),
        (dict, {1: 2}, "keys are strings"),
        (dict[str, Any], {"a": {1: 2, "1": 3}}, "keys are strings"),
        (dict[str, object], {"a": object()}, "Unable to serialize unknown type"),
        (Named, {"a": float("nan")}, "nan"),
        (list[Named], [{"a": {1: 2}}], "keys are strings"),
        (NamedList[Any], [float("nan")], "nan"),
        (NewType("Renamed", dict), {1: 2}, "keys are strings"),
        (Box, Box(inside=float("nan")), "nan"),
        (Open, Open(more=float("nan")), "nan"),
        (OpenDict, {"more": {1: 2}}, "keys are strings"),
    ],
)
def test_typed_argument_that_can_not_be_stored_is_refused_with_its_place(annotation, value, complaint):
    def work(ctx, x): ...

    work.__annotations__["x"] = annotation
    with _refused("work", complaint):
        WorkTask.handler()(work).call(value)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("annotation", [Any, list, list[Any]])
@pytest.mark.parametrize("depth", [100, 250, 450, 700, 100_000])
def test_deep_argument_has_a_key_or_is_refused(annotation, depth):
    def work(ctx, x): ...

    work.__annotations__["x"] = annotation
    handler, value = WorkTask.handler()(work), _nested(depth)
    if depth > 200:
        with suppress(InvalidParams):
            once_key("work", handler.call(value).params)
    else:
        assert once_key("work", handler.call(value).params)


@pytest.mark.parametrize("depth", [100, 250, 350, 400, 450, 700, 100_000])
def test_deep_params_by_name_are_spawned_or_refused(session, depth):
    def spawn():
        return Durable(session).spawn(BillingTask, "elsewhere", {"x": _nested(depth)}, only_once=True)

    if depth > 200:
        with suppress(InvalidParams):
            assert spawn().created
    else:
        assert spawn().created


def test_value_that_contains_itself_is_refused():
    @WorkTask.handler()
    def work(ctx, x, y: list[Any] | None = None): ...

    looped: list[Any] = []
    looped.append(looped)
    with _refused("work", "x is nested too deeply or contains itself"):
        work.call(looped)
    with _refused("work", ""):
        work.call(1, looped)


# By name, and options


def test_name_of_a_handler_that_is_known_here_is_checked(session):
    with _refused("charge", "order_id"):
        Durable(session).spawn(BillingTask, "charge", {"order": 7})
    spawned = Durable(session).spawn(BillingTask, "charge", {"order_id": "7", "amount": Decimal("1.5")})
    assert spawned.task.params == {"order_id": 7, "amount": "1.5"}


def test_unknown_handler_name_takes_plain_json(session):
    params = {"a": [1, None, {"b": "c"}]}
    assert Durable(session).spawn(BillingTask, "elsewhere", params).task.params == params


@pytest.mark.parametrize(
    "name, params, complaint",
    [
        ("elsewhere", {"a": Decimal(1)}, "elsewhere: params.a is of type Decimal"),
        ("elsewhere", {1: 2}, "elsewhere: params has the key 1"),
        ("elsewhere", {"a": "\0"}, "elsewhere: params.a has a NUL"),
        ("elsewhere", {"a": "x" * 1024**2}, "elsewhere: params takes"),
        ("elsewhere", [1], "elsewhere: params must be a mapping"),
        ("elsewhere", None, "elsewhere: params must be a mapping"),
        ("", {}, "task name ''"),
        ("x" * 256, {}, "task name 'xxx"),
        ("a\0", {}, "task name 'a"),
    ],
)
def test_call_by_name_that_can_not_be_stored_is_refused(session, name, params, complaint):
    with pytest.raises(InvalidParams, match=complaint):
        Durable(session).spawn(BillingTask, name, params)


def test_using_adds_options_and_leaves_the_call_alone():
    call = charge.call(7)
    keyed = call.using(idempotency_key="k", priority=3).using(priority=4)
    assert (call.options, keyed.options) == ({}, {"idempotency_key": "k", "priority": 4})
    assert (keyed.params, keyed.defaults, keyed.model) == (call.params, {"max_attempts": 3}, BillingTask)


def test_options_of_spawn_call_and_handler_win_in_this_order(session):
    durable = Durable(session)
    call = charge.call(7).using(max_attempts=2, priority=2)
    assert [
        (task.max_attempts, task.priority)
        for task in (
            durable.spawn(charge.call(7)).task,
            durable.spawn(call).task,
            durable.spawn(call, priority=1).task,
        )
    ] == [(3, 0), (2, 2), (2, 1)]


def test_call_survives_pickling_and_copying():
    call = charge.call(7, Decimal("1.50")).using(idempotency_key="k", retry=NoRetry())
    for other in (pickle.loads(pickle.dumps(call)), copy.deepcopy(call), copy.copy(call)):
        assert other == call
        assert other.model is BillingTask
        assert other.params_text == call.params_text


def test_task_object_has_every_default_in_place():
    task = charge.task(order_id=7)
    assert (task.name, task.params, task.max_attempts, task.priority) == ("charge", {"order_id": 7}, 3, 0)
    assert task.id.version == task.run_id.version == 7
    assert task.retry["kind"] == "exponential"
