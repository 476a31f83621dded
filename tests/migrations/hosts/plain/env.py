"""As `alembic init` writes it, less logging; what sa_durable's users add is marked by (*)."""

from alembic import context
from sqlalchemy import create_engine, pool

import sa_durable.alembic  # (*)

config = context.config
OPTIONS = {
    "target_metadata": config.attributes["metadata"],  # a real one imports its Base: from models import Base
    "transaction_per_migration": True,  # (*)
    "autogenerate_plugins": ["alembic.autogenerate.*", "sa_durable"],  # (*)
}


def run_migrations_online() -> None:
    with (
        create_engine(
            config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool
        ).connect() as connection,
        sa_durable.alembic.migration_lock(connection),
    ):  # (*)
        context.configure(connection=connection, **OPTIONS)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    context.configure(url=config.get_main_option("sqlalchemy.url"), literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
else:
    run_migrations_online()
