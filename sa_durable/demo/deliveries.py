"""The webhook log: the payment provider's deliveries, with repetitions and out of order."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ValidationError

LOG = Path(__file__).with_name("deliveries.jsonl")


class PaymentData(BaseModel):
    """The payment that an event is about."""

    payment_id: str
    amount: Decimal
    currency: str


class Event(BaseModel):
    """A change of a payment. Every delivery of the event has the same event id."""

    id: str
    type: str
    created: datetime
    data: PaymentData


class Delivery(BaseModel):
    """One HTTP request from the provider."""

    delivery: str
    attempt: int
    received_at: datetime
    event: Event


def read(path: Path) -> Iterator[Delivery]:
    """Read the deliveries of a JSON Lines file.

    Raises:
        ValueError: A line is not a delivery. The message has its number.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Delivery.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
