"""One of the web processes: read the log and spawn a task for each delivery, with the event's id as its key.

After each delivery, it prints how many deliveries it has committed and how many tasks it created.
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

DELIVERY_INTERVAL_S = 0.001


def main(path: Path) -> None:
    """Spawn a task for each delivery in the file."""
    created = 0
    for number, delivery in enumerate(deliveries.read(path), 1):
        event = delivery.event
        with Session(engine) as session, session.begin():
            payment = event.data.model_dump(include={"amount", "currency"}) | {"id": event.data.payment_id}
            session.execute(insert(Payment).values(payment).on_conflict_do_nothing())
            spawned = Durable(session).spawn(
                handle_event.call(event),
                idempotency_key=event.id,
                hold="forever",  # an event is never handled again, even if it is delivered a year later
                columns={"payment_id": event.data.payment_id},
            )
        created += spawned.created
        print(number, created, flush=True)
        time.sleep(DELIVERY_INTERVAL_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
