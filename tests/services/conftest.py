from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from tests.databases import delete_all
from tests.services.clients import CLIENTS, Client, open_client
from tests.shop import Base


@pytest.fixture
def scratch(shared_engine: Engine) -> Iterator[Session]:
    """A session that finds all tables empty and never commits: twenty times cheaper than truncating them."""
    with Session(shared_engine) as session:
        delete_all(session, Base.metadata)

        @event.listens_for(session, "before_commit")
        def refuse(_: Session) -> None:
            assert session.in_nested_transaction(), "a scratch session is for tests that never commit"

        yield session
        session.rollback()


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, engine: Engine, database_url: str) -> Iterator[Client]:
    """Each driver and client in turn, on the shop's empty tables."""
    with open_client(request.param, database_url) as client:
        yield client
