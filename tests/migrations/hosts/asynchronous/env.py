"""As `alembic init -t async` writes it, less logging; what sa_durable's users add is marked by (*)."""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

import sa_durable.alembic  # (*)

config = context.config


def do_run_migrations(connection: Connection) -> None:
    with sa_durable.alembic.migration_lock(connection):  # (*)
        # A real one imports its Base: from models import Base; target_metadata = Base.metadata
        context.configure(
            connection=connection,
            target_metadata=config.attributes["metadata"],
            transaction_per_migration=True,  # (*)
            autogenerate_plugins=["alembic.autogenerate.*", "sa_durable"],  # (*)
        )
        with context.begin_transaction():
            context.run_migrations()


async def run_async_migrations() -> None:
    url = config.get_main_option("sqlalchemy.url").replace("+psycopg", "+asyncpg")
    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(do_run_migrations)
    await engine.dispose()


asyncio.run(run_async_migrations())
