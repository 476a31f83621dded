"""What was sent to the database, and moments in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session


@contextmanager
def statements(target: Engine | Connection) -> Iterator[list[str]]:
    """The SQL that `target` sends meanwhile, statement by statement."""
    sent: list[str] = []

    def note(_: Connection, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    event.listen(target, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(target, "before_cursor_execute", note)


@contextmanager
def just_before(
    session: Session, beginning: str, act: Callable[[], object], *, nth: int = 1
) -> Iterator[None]:
    """Call `act` when `session` is about to send its `nth` statement that begins so."""
    connection = session.connection()
    seen = 0

    def interrupt(_: Connection, __: Any, statement: str, *___: Any) -> None:
        nonlocal seen
        if statement.startswith(beginning):
            seen += 1
            if seen == nth:
                act()

    event.listen(connection, "before_cursor_execute", interrupt)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", interrupt)
    assert seen >= nth, f"{seen} statements began with {beginning}"
