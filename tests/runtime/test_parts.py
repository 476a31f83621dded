"""The pure parts of the runtime."""

from __future__ import annotations

import asyncio
import functools
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from sa_durable import DeclarationError, InvalidParams, InvalidResult
from sa_durable.runtime.context.replay import NotYetRun, Replay, Replayed, check_step_name
from sa_durable.runtime.context.step_values import UNTYPED, coder_for_function, decode, encode
from sa_durable.runtime.runs.capacity import PREFETCH_LIMIT, Capacity
from sa_durable.runtime.runs.errors import MAX_MESSAGE_CHARS, MAX_TRACEBACK_CHARS, retryable, to_task_error
from sa_durable.runtime.threads.pool import DaemonThreadPool


def test_a_step_name_is_printable_and_leaves_the_library_its_own():
    for name in ("a", "x" * 255, "charge card / 2", "größe"):
        assert check_step_name(name) == name
    for name in ("", "x" * 256, "a#2", "~once", "$sleep", "a\nb", "\0", 7, None):
        with pytest.raises(DeclarationError):
            check_step_name(name)


# B12
def test_the_journal_numbers_repeated_names_and_finds_a_saved_none():
    journal = Replay({"a": 1, "a#3": None})
    assert [journal.next("a") for _ in range(4)] == [
        Replayed("a", 1),
        NotYetRun("a#2"),
        Replayed("a#3", None),
        NotYetRun("a#4"),
    ]


def test_slow_runs_fetch_nothing_ahead_and_quick_ones_a_bounded_number():
    slots = Capacity(10, None)

    def run(seconds: float) -> None:
        slots.reserve(1)
        slots.start()
        slots.release(seconds)

    assert slots.available == 11  # before it knows better
    for _ in range(200):
        run(5.0)
    assert (slots.prefetch, slots.available) == (0, 10)
    for _ in range(500):
        run(0.0001)
    assert (slots.prefetch, slots.available) == (PREFETCH_LIMIT, 10 + PREFETCH_LIMIT)
    slots.reserve(170)
    assert slots.available == 0  # enough is waiting: the next claim is a batch again
    slots.release_stale(2.0)
    for _ in range(170):
        slots.release()
    assert (slots.prefetch, slots.available) == (0, 10)


def test_fixed_prefetch_never_claims_more_than_slots_and_prefetch():
    slots = Capacity(2, 4)
    slots.reserve(slots.available)
    assert (slots.held, slots.available) == (6, 0)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_every_exception_can_be_stored():
    stored = to_task_error(ValueError("\0\ud800" + "é" * 10_000))
    assert stored.type == "ValueError" and len(stored.message) <= MAX_MESSAGE_CHARS + 20
    assert "\0" not in stored.message and stored.message.encode()
    assert "ValueError" in stored.traceback and len(stored.traceback) <= MAX_TRACEBACK_CHARS + 20
    assert to_task_error(Unprintable()).message == "(no message: __str__ failed)"

    def deep(n: int) -> Any:
        return deep(n + 1)

    try:
        deep(0)
    except RecursionError as error:
        assert len(to_task_error(error).traceback) <= MAX_TRACEBACK_CHARS


def test_what_is_wrong_for_good_is_not_retried():
    assert retryable(ValueError()) and retryable(SystemExit())
    assert not any(retryable(wrong()) for wrong in (InvalidParams, InvalidResult, DeclarationError))


def typed(n: int) -> tuple[int, str]:
    return n, "x"


class CallableObject:
    def __call__(self) -> tuple[int, str]:
        return 1, "x"


def test_a_steps_values_are_typed_by_its_function():
    for fn in (typed, functools.partial(typed, 1), CallableObject(), CallableObject().__call__):
        coder = coder_for_function(fn, None)
        assert decode(coder, [1, "x"], "s") == (1, "x") and encode(coder, (1, "x"), "s") == '[1,"x"]'
    for fn in (lambda: 1, int, print, functools.partial(print)):
        assert coder_for_function(fn, None) is UNTYPED
    assert decode(coder_for_function(lambda: 1, set[int]), [1, 1], "s") == {1}
    with pytest.raises(InvalidResult, match="step 's'"):
        encode(UNTYPED, object(), "s")
    with pytest.raises(InvalidResult, match=r"step 's': saved value: .*retry the task"):
        decode(coder_for_function(typed, None), ["x"], "s")

    def unresolved() -> Nowhere: ...  # noqa: F821 - that it is undefined is the point

    with pytest.raises(DeclarationError, match="returns="):
        coder_for_function(unresolved, None)


def test_a_call_whose_caller_was_cancelled_costs_no_thread():
    threads, inside, gate = DaemonThreadPool("test", 1), threading.Event(), threading.Event()

    def blocks() -> None:
        inside.set()
        gate.wait(60)

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        begun = loop.create_task(threads.call(blocks))
        await loop.run_in_executor(None, inside.wait, 20)
        waiting = loop.create_task(threads.call(seen.append, "waiting"))
        await asyncio.sleep(0)  # it is submitted
        begun.cancel()
        waiting.cancel()
        await asyncio.gather(begun, waiting, return_exceptions=True)
        gate.set()
        await threads.call(seen.append, "after")
        return seen

    seen: list[str] = []
    assert asyncio.run(main()) == ["after"]
    threads.stop()


def test_threads_see_the_variables_of_their_caller_and_leave_none_behind():
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    threads = DaemonThreadPool("test", 1)

    def look() -> str:
        before = variable.get()
        variable.set("left behind")
        return before

    async def main() -> list[str]:
        token = variable.set("the caller's")
        seen = [await threads.call(look)]
        variable.reset(token)
        return [*seen, await threads.call(look)]

    assert asyncio.run(main()) == ["the caller's", "unset"]
    threads.stop()
