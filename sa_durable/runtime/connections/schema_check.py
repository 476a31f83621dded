"""What a worker asks before it starts: is this the schema that its code needs?"""

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
MAX_SHOWN = 5  # differences in an error's text


def check_schema(database: Database, queues: Iterable[type[DurableTask]]) -> None:
    """Raise SchemaOutdated if the tables of `queues` lack something that this version can't work without. Other
    differences are logged. A database that is away is not waited for: a worker starts without it."""
    mapped: list[Any] = []
    for model in queues:
        mapped += [model, model.Run, model.Checkpoint, model.Event, model.Wait, model.Queue]
    try:
        with database.transaction() as session:
            found = verify.differences(session.connection(), dict.fromkeys(one.__table__ for one in mapped))
    except DBAPIError as error:
        if not is_transient(error) and sqlstate(error) != INSUFFICIENT_PRIVILEGE:
            raise
        logger.warning("the schema was not checked: %s", describe_for_log(error))
        return
    if breaking := [str(difference) for difference in found if difference.breaks]:
        more = f" (and {len(breaking) - MAX_SHOWN} more)" if len(breaking) > MAX_SHOWN else ""
        raise SchemaOutdated(
            f"the database is behind sa_durable's schema: {'; '.join(breaking[:MAX_SHOWN])}{more}. Nothing was started; "
            "run `alembic upgrade head`"
        )
    for difference in found:
        logger.warning("the schema differs, run `alembic revision --autogenerate`: %s", difference)
