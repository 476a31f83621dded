"""A host application's environment, as `alembic init` writes it. What sa_durable needs is marked by (*)."""

import os
from logging.config import fileConfig

from alembic import context
from sqlalchemy import Connection, create_engine, pool

# (*) migration_lock lets one migrator run at a time. The import also registers op.durable_add_key and others.
from sa_durable.alembic import migration_lock
from sa_durable.demo.models import Base

config = context.config
if config.config_file_name is not None and config.attributes.get("configure_logger", True):
    fileConfig(config.config_file_name, disable_existing_loggers=False)

URL = (
    os.environ.get("SA_DURABLE_DATABASE_URL")
    or os.environ.get("DATABASE_URL")
    or config.get_main_option("sqlalchemy.url")
)
OPTIONS = {
    "target_metadata": Base.metadata,
    "transaction_per_migration": True,  # (*) a revision that commits by itself does not commit others
    "compare_server_default": True,
}


def run_migrations_offline() -> None:
    """Write a script, for psql, instead of running it."""
    context.configure(url=URL, literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    """Run on the connection in `config.attributes`, which a test sets, or on a new connection."""
    connection: Connection | None = config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    with create_engine(URL, poolclass=pool.NullPool).connect() as connection:
        migrate(connection)


def migrate(connection: Connection) -> None:
    with migration_lock(connection):  # (*) a second migrator waits, and then finds every revision applied
        context.configure(connection=connection, **OPTIONS)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
