from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.services.clients import CLIENTS, Client, open_client


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, engine: Engine, database_url: str) -> Iterator[Client]:
    """Each driver and client in turn, on the shop's empty tables."""
    with open_client(request.param, database_url) as client:
        yield client
