"""Rules for the application's function while it has the session of a transaction.

The session's transaction commits once, when the function has returned, together with the library's record of
it. Nothing that the library saves in other transactions may happen in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sqlalchemy import event
from sqlalchemy.orm import Session

from ...errors import DeclarationError
from ..runs.active import ActiveRun

if TYPE_CHECKING:
    from ...models import DurableTask

_run_in_transaction: ContextVar[ActiveRun | None] = ContextVar("sa_durable_transaction", default=None)


def open_transaction(session: Session, model: type[DurableTask]) -> None:
    """Connect to the database of the queue and begin the session's transaction.

    Raises:
        DeclarationError: The engine is in AUTOCOMMIT mode, where there are no transactions.
    """
    connection = session.connection(bind_arguments={"mapper": model})
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise DeclarationError(
            "the engine for ctx.transaction commits each statement (AUTOCOMMIT). Nothing was written. "
            "Give the worker another engine, or a session_factory"
        )


@contextmanager
def transaction_scope(run: ActiveRun) -> Iterator[None]:
    """Mark the code in the block as part of a transaction of `run`: `require_no_transaction` refuses it."""
    token = _run_in_transaction.set(run)
    try:
        yield
    finally:
        _run_in_transaction.reset(token)


def require_no_transaction(run: ActiveRun) -> None:
    """Check that the caller isn't the function of a `ctx.transaction` of `run`.

    A step that is saved there would stay saved if the transaction rolls back.

    Raises:
        DeclarationError: It is.
    """
    if _run_in_transaction.get() is run:
        raise DeclarationError(
            f"{run.claim.name}: the function of a ctx.transaction can only use its session. Take steps, "
            "sleep and wait before or after the transaction. To spawn or emit in it, use Durable(session)"
        )


class CommitGuard:
    """Keep the application from committing the session itself, which would write its rows without the record.

    Args:
        session: The session to watch, while the guard is entered.
    """

    def __init__(self, session: Session) -> None:
        self.allow_commit = False
        """Whether the session may commit. The library sets it for its own COMMIT."""
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
                "the session of a transaction must not be committed by its function: it commits when the "
                "function returns, together with the step. Nothing was written"
            )
