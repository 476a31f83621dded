"""One of the web processes: reads the log and spawns a task for each delivery, keyed by its event.

Prints how many deliveries it has committed and how many tasks it created, after each.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..services.durable import Durable
from . import deliveries
from .app import engine, handle_event
from .models import Payment

PACE = 0.001  # seconds between two deliveries: they don't come all at once


def main(path: Path) -> None:
    created = 0
    for number, delivery in enumerate(deliveries.read(path), 1):
        event = delivery.event
        with Session(engine) as session, session.begin():
            payment = event.data.model_dump(include={"amount", "currency"}) | {"id": event.data.payment_id}
            session.execute(insert(Payment).values(payment).on_conflict_do_nothing())
            spawned = Durable(session).spawn(
                handle_event.call(event),
                idempotency_key=event.id,
                hold="forever",  # an event that was handled last year is not handled again
                columns={"payment_id": event.data.payment_id},
            )
        created += spawned.created
        print(number, created, flush=True)
        time.sleep(PACE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
