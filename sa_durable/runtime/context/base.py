"""What a handler gets first: its task's identity, and the durable verbs. One vocabulary, plain and async."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn, ParamSpec, TypeVar, overload
from uuid import UUID

from ...errors import DeclarationError, InvalidOptions
from ...models import DurableTask
from ...services.waits import AwaitedTasks
from ...values import Json
from ..runs.active import ActiveRun
from .manual_step import Step
from .operations import ContextOperations
from .replay import NotYetRun, Replay, Replayed, check_step_name
from .steps import coder_for_type
from .transaction_record import require_no_transaction

P = ParamSpec("P")
R = TypeVar("R")

MAX_SLEEP = timedelta(days=36500)
SLEEP, AWAIT, EMIT, SPAWN, JOIN = "$sleep", "$await:", "$emit:", "$spawn:", "$join"
NOW, RANDOM, UUID7 = "$now", "$random", "$uuid7"


class Context:
    def __init__(self, run: ActiveRun, verbs: ContextOperations, session: Any = None) -> None:
        """`session`: of a transactional handler."""
        self._run, self._operations, self._session = run, verbs, session

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of task {self.task_id}, attempt {self.attempt}>"

    @property
    def task_id(self) -> UUID:
        return self._run.claim.task_id

    @property
    def run_id(self) -> UUID:
        """The current attempt's id: the same after a sleep, another one after a failure."""
        return self._run.claim.run_id

    @property
    def attempt(self) -> int:
        """From 1."""
        return self._run.claim.attempt

    @property
    def name(self) -> str:
        """The task's, by which its handler was found."""
        return self._run.claim.name

    @property
    def queue(self) -> str:
        return self._run.claim.queue

    @property
    def headers(self) -> Mapping[str, Json]:
        """What the spawn gave beside the params; read-only."""
        return MappingProxyType(dict(self._run.claim.headers or {}))

    @overload
    def begin_step(self, name: str) -> Step[Any]: ...
    @overload
    def begin_step(self, name: str, *, returns: type[R]) -> Step[R]: ...
    def begin_step(self, name: str, *, returns: Any = Any) -> Step[Any]:
        """A step that doesn't fit a callable. It writes nothing; `complete_step` saves it.

        ::

            step = ctx.begin_step("pay", returns=Receipt)
            if not step.done:
                with provider.session() as session:
                    ctx.complete_step(step, session.pay(order_id))
            receipt = step.value

        A step that isn't completed is begun again by the next attempt. Names are numbered in the order of beginning,
        as `step` numbers them. Nothing to await, for async handlers neither.
        """
        return Step(self._run, self._next(check_step_name(name)), coder_for_type(returns))

    @cached_property
    def _replay(self) -> Replay:
        return Replay(self._run.checkpoints)

    def _next(self, name: str) -> Replayed | NotYetRun:
        if self._session is not None:
            raise DeclarationError(
                f"task {self.name!r} is transactional: it has ctx.session, ctx.spawn and ctx.emit_event, and nothing that "
                "is remembered before it ends"
            )
        require_no_transaction(self._run)
        self._run.check()
        return self._replay.next(name)

    def _own_session(self) -> Any:
        if self._session is None:
            raise DeclarationError(
                f"task {self.name!r} has no session: ctx.transaction(name, fn) gives fn one, and "
                "@handler(transactional=True) makes the whole handler one transaction"
            )
        return self._session

    def _ends(self, tasks: Iterable[tuple[type[DurableTask], UUID]]) -> AwaitedTasks:
        joined = list(tasks)
        if (self._run.model, self.task_id) in joined:
            raise DeclarationError(f"task {self.task_id} can't wait for its own end: it would for ever")
        return AwaitedTasks(joined)

    def _suspend(self) -> NoReturn:
        self._run.suspend()


def check_timeout(timeout: timedelta | None) -> timedelta | None:
    if timeout is not None and (
        not isinstance(timeout, timedelta) or not timedelta(0) <= timeout <= MAX_SLEEP
    ):
        raise InvalidOptions(f"timeout={timeout!r}: a timedelta from 0 to {MAX_SLEEP.days} days, or None")
    return timeout


def check_delay(delay: timedelta) -> timedelta:
    if not isinstance(delay, timedelta) or not timedelta(0) <= delay <= MAX_SLEEP:
        raise InvalidOptions(f"sleep_for({delay!r}): a timedelta from 0 to {MAX_SLEEP.days} days")
    return delay


def check_moment(moment: datetime) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidOptions(f"sleep_until({moment!r}): an aware datetime, e.g. with tzinfo=UTC")
    return moment


def read_moment(stored: str) -> datetime:
    """A time that PostgreSQL wrote, in UTC."""
    return datetime.fromisoformat(stored).astimezone(UTC)
