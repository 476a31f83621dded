"""What is asked for at random, and how the services are asked for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from sa_durable import Cancellation, Fixed, NoRetry
from tests.shop import charge, refund
from tests.stateful.tasks import Ask

CALLS = {"charge": charge, "refund": refund}

seconds = st.sampled_from([None, 1, 30, 3600])
asks = st.builds(
    Ask,
    name=st.sampled_from(["charge", "charge", "charge", "refund"]),
    params=st.sampled_from([1, 2]),
    key=st.sampled_from([None, "a", "b"]),
    hold=st.sampled_from(["active", "queued", "succeeded", "forever"]),
    ttl=st.sampled_from([None, None, 30]),
    on_duplicate=st.sampled_from(["return", "return", "raise", "update", "replace"]),
    strict=st.booleans(),
    delay=st.sampled_from([0, 0, 0, 5]),
    priority=st.sampled_from([0, 0, 1]),
    max_attempts=st.sampled_from([1, 2, None]),
    retry_delay=st.sampled_from([None, 0, 30]),
    start_within=seconds,
    max_duration=seconds,
)
pick = st.integers(0, 50)
keep = st.sampled_from([True, True, True, True, False])


def call_of(ask: Ask) -> Any:
    options: dict[str, Any] = {
        "priority": ask.priority,
        "max_attempts": ask.max_attempts,
        "retry": NoRetry() if ask.retry_delay is None else Fixed(seconds_of(ask.retry_delay), jitter=0),
        "cancellation": Cancellation(seconds_of(ask.start_within), seconds_of(ask.max_duration)),
    }
    if ask.delay:
        options["delay"] = seconds_of(ask.delay)
    if ask.key is not None:
        options |= {"idempotency_key": ask.key, "hold": ask.hold, "on_duplicate": ask.on_duplicate}
        options["strict"] = ask.strict and ask.on_duplicate != "update"
        if ask.hold in ("succeeded", "forever"):
            options["key_ttl"] = seconds_of(ask.ttl)
    return CALLS[ask.name].call(order_id=ask.params).using(**options)


def as_asked(ask: Ask) -> Ask:
    """What `call_of` asks for: options that exclude each other aside."""
    strict = ask.strict and ask.key is not None and ask.on_duplicate != "update"
    ttl = ask.ttl if ask.hold in ("succeeded", "forever") else None
    return Ask(**{**vars(ask), "strict": strict, "ttl": ttl})


def seconds_of(value: int | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)
