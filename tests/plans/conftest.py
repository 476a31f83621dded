"""The crowded databases, filled once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.plans.crowd import KNOWN, crowded


@pytest.fixture(scope="session")
def crowd(server_url: str) -> Iterator[dict[str, Engine]]:
    with crowded(server_url) as engines:
        yield engines


@pytest.fixture(params=KNOWN)
def engine(crowd: dict[str, Engine], request: pytest.FixtureRequest) -> Engine:
    """A crowded database, for each state of the planner's knowledge."""
    return crowd[request.param]


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)
