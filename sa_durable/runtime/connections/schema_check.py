"""Compare the database with the schema that this version needs, before a worker starts."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from ...errors import SchemaOutdated
from ...services import verify
from .database import Database
from .errors import describe_for_log, is_transient, sqlstate

if TYPE_CHECKING:
    from ...models import DurableTask

logger = logging.getLogger("sa_durable.worker")

INSUFFICIENT_PRIVILEGE = "42501"
"""SQLSTATE that a role gets if it may not read what the check reads. The check is then skipped."""

MAX_SHOWN = 5
"""How many differences the text of an error lists."""


def check_schema(database: Database, queues: Iterable[type[DurableTask]]) -> None:
    """Compare the tables of `queues` with their models. Log differences that this version can work with.

    If the database is unavailable, the check is skipped: a worker starts without its database.

    Raises:
        SchemaOutdated: The tables lack something that this version needs.
    """
    mapped: list[Any] = []
    for model in queues:
        mapped += [model, model.Run, model.Checkpoint, model.Event, model.Wait, model.Queue]
    try:
        with database.transaction() as session:
            found = verify.differences(session.connection(), dict.fromkeys(one.__table__ for one in mapped))
    except DBAPIError as error:
        if not is_transient(error) and sqlstate(error) != INSUFFICIENT_PRIVILEGE:
            raise
        logger.warning("schema not checked (%s); the worker starts anyway", describe_for_log(error))
        return
    if breaking := [str(difference) for difference in found if difference.breaks]:
        more = f" (and {len(breaking) - MAX_SHOWN} more)" if len(breaking) > MAX_SHOWN else ""
        raise SchemaOutdated(
            f"the database is behind sa_durable's schema: {'; '.join(breaking[:MAX_SHOWN])}{more}. "
            "Nothing was started. Run `alembic upgrade head`."
        )
    for difference in found:
        logger.warning(
            "schema differs: %s; the worker starts anyway, run `alembic revision --autogenerate`", difference
        )
