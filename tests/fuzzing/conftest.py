from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.services.doors import DOORS, Door, open_door


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, engine: Engine, database_url: str) -> Iterator[Door]:
    """Each driver and door in turn, on the shop's empty tables."""
    with open_door(request.param, database_url) as door:
        yield door
