"""A database whose roles are those of docs/operations/roles.sql, and people who have them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Engine, create_engine, text

from tests.databases import ROLES_SCRIPT, alone, forget_roles, throwaway
from tests.security.app import Base

ROLES = ("migrate", "spawn", "work", "view")


@dataclass
class Roles:
    """`migrate`, `spawn`, `work` and `view` have those roles and nothing more; `admin` is superuser."""

    admin: Engine
    engines: dict[str, Engine] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Engine:
        return self.engines[name]

    def apply(self, engine: Engine) -> None:
        """Run the script, as it is."""
        with alone(self.admin), engine.begin() as connection:
            # As psql would send it: no driver looks for placeholders in it.
            connection.connection.driver_connection.execute(ROLES_SCRIPT.read_text())


@pytest.fixture(scope="module")
def roles(server_url: str) -> Iterator[Roles]:
    with ExitStack() as stack:
        admin = stack.enter_context(throwaway(server_url))
        database = admin.url.database
        roles = Roles(admin)
        for name in ROLES:
            roles.engines[name] = create_engine(admin.url.set(username=f"{name}_{database}"))
            stack.callback(roles.engines[name].dispose)
        with alone(admin), admin.begin() as connection:
            for name in ROLES:
                connection.execute(text(f"CREATE ROLE {name}_{database} LOGIN"))
        try:
            Base.metadata.create_all(admin)
            roles.apply(admin)
            with alone(admin), admin.begin() as connection:
                for name in ROLES:
                    connection.execute(text(f"GRANT durable_{name} TO {name}_{database}"))
                # What the application does with its own tables is its own to say.
                connection.execute(text(f"GRANT INSERT, SELECT ON bookings TO work_{database}"))
                connection.execute(text(f"GRANT USAGE ON SEQUENCE bookings_id_seq TO work_{database}"))
            yield roles
        finally:
            for engine in roles.engines.values():
                engine.dispose()
            people = [f"{name}_{database}" for name in ROLES]
            with alone(admin), admin.begin() as connection:
                forget_roles(connection, *people)
