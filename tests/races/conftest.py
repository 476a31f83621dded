from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session


@pytest.fixture
def rival(engine: Engine, session: Session) -> Iterator[Session]:
    """A second session beside `session`."""
    with Session(engine) as rival:
        yield rival
        session.close()  # first: a rival that still waits for it, in a failed test, can't be closed before
