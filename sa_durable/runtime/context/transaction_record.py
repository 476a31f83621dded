"""What a transaction of the application's leaves beside its rows: the proof that it happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from sqlalchemy import event
from sqlalchemy.orm import Session

from ...codec import Coder
from ...errors import DeclarationError
from ...services import checkpoints, claims, runs
from ...services.claims import ClaimStatus
from ...values import Json
from ..runs.active import ActiveRun
from .steps import encode

if TYPE_CHECKING:
    from ...models import DurableTask

T_contra = TypeVar("T_contra", contravariant=True)
V_co = TypeVar("V_co", covariant=True)


class Record(Protocol[T_contra, V_co]):
    def record(self, session: Session, value: T_contra) -> V_co:
        """Write that it happened, and with which value. Raises AlreadySaved if it had; Cancelled, LeaseLost."""

    def find(self, session: Session) -> V_co | None:
        """What an earlier try recorded, if it committed. Waits for one that may still commit: the answer is final."""

    def finishing_block(self) -> AbstractContextManager[None]:
        """Around the record and its COMMIT."""


@dataclass(frozen=True, slots=True)
class Found:
    value: Json


class StepRecord:
    """A step of the run, as its checkpoint."""

    def __init__(self, run: ActiveRun, key: str, coder: Coder) -> None:
        self._run, self._key, self._coder = run, key, coder

    def record(self, session: Session, value: Any) -> Found:
        model, claim = self._run.model, self._run.claim
        text = encode(self._coder, value, self._key)
        return Found(checkpoints.save_first(session, model, claim, self._key, text))

    def find(self, session: Session) -> Found | None:
        model, claim = self._run.model, self._run.claim
        claims.lock(session, model, claim)
        saved = checkpoints.find(session, model, claim.task_id, self._key)
        return None if saved is None else Found(saved.value)

    def finishing_block(self) -> AbstractContextManager[None]:
        return nullcontext()


class TaskRecord:
    """The completion of the run's task. `encode` makes JSON text of its result."""

    def __init__(self, run: ActiveRun, encode: Callable[[Any], str]) -> None:
        self._run, self._encode = run, encode

    def record(self, session: Session, value: Any) -> bool:
        runs.complete_first(session, self._run.model, self._run.claim, self._encode(value))
        return True

    def find(self, session: Session) -> bool | None:
        stands = claims.lock(session, self._run.model, self._run.claim)
        return True if stands is ClaimStatus.STORED else None

    def finishing_block(self) -> AbstractContextManager[None]:
        return self._run.finishing_block()


def begin(session: Session, model: type[DurableTask]) -> None:
    """Connect to where the record goes. Raises DeclarationError if there are no transactions."""
    connection = session.connection(bind_arguments={"mapper": model})
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise DeclarationError(
            "the engine for ctx.transaction commits each statement (AUTOCOMMIT): give the worker another, or a session_factory"
        )


_inside: ContextVar[ActiveRun | None] = ContextVar("sa_durable_transaction", default=None)


@contextmanager
def transaction_scope(run: ActiveRun) -> Iterator[None]:
    """While a function of the application's runs in a transaction of `run`."""
    token = _inside.set(run)
    try:
        yield
    finally:
        _inside.reset(token)


def require_no_transaction(run: ActiveRun) -> None:
    """Refuse what would be remembered although the transaction that it is called in rolls back."""
    if _inside.get() is run:
        raise DeclarationError(
            "the function of a ctx.transaction has its session and nothing else that is durable: take steps, sleep and wait "
            "before or after it; what it spawns and emits with Durable(session) is part of the transaction"
        )


class CommitGuard:
    """Keeps the application from committing half of it: rows without the record that they were written."""

    def __init__(self, session: Session) -> None:
        self.allow_commit = False
        self._session = session

    def __enter__(self) -> Self:
        event.listen(self._session, "before_commit", self._check)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        event.remove(self._session, "before_commit", self._check)

    def _check(self, session: Session) -> None:
        if not self.allow_commit and not session.in_nested_transaction():
            raise DeclarationError(
                "this session's transaction commits when the function returns, together with the step: don't commit it"
            )
