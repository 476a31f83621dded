"""The webhook log: what the payment provider delivered, often more than once, and not in order."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ValidationError

LOG = Path(__file__).with_name("deliveries.jsonl")


class PaymentData(BaseModel):
    payment_id: str
    amount: Decimal
    currency: str


class Event(BaseModel):
    """A fact at the provider. Its id is the same in every delivery of it."""

    id: str
    type: str
    created: datetime
    data: PaymentData


class Delivery(BaseModel):
    """One HTTP request of the provider's."""

    delivery: str
    attempt: int
    received_at: datetime
    event: Event


def read(path: Path) -> Iterator[Delivery]:
    """The deliveries of a JSON Lines file. Raises ValueError with the line that is none."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Delivery.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
