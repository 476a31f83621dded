"""The large databases, filled once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.plans.large_dataset import STATISTICS, large_databases


@pytest.fixture(scope="session")
def databases(server_url: str) -> Iterator[dict[str, Engine]]:
    with large_databases(server_url) as engines:
        yield engines


@pytest.fixture(params=STATISTICS)
def engine(databases: dict[str, Engine], request: pytest.FixtureRequest) -> Engine:
    """A large database, for each state of the planner's statistics."""
    return databases[request.param]


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)
