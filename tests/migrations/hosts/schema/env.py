"""As `alembic init` writes it, less logging; what sa_durable's users add is marked by (*)."""

from alembic import context
from sqlalchemy import create_engine, pool, text

import sa_durable.alembic  # (*)

config = context.config


def ours(name: str | None, type_: str, parents: object) -> bool:
    """With include_schemas, only this application's schema is looked at."""
    return type_ != "schema" or name == "app"


with create_engine(config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool).connect() as connection:
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS app"))
    connection.commit()
    with sa_durable.alembic.migration_lock(connection):  # (*)
        # A real one imports its Base: from models import Base; target_metadata = Base.metadata
        context.configure(
            connection=connection,
            target_metadata=config.attributes["metadata"],
            include_schemas=True,
            include_name=ours,
            version_table_schema="app",
            transaction_per_migration=True,  # (*)
            autogenerate_plugins=["alembic.autogenerate.*", "sa_durable"],  # (*)
        )
        with context.begin_transaction():
            context.run_migrations()
