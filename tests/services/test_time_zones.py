"""A day has 24 hours, wherever a session lives: not 23 or 25 where its time zone changes its clocks meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from sa_durable import Cancellation, Durable
from sa_durable.services import claims, runs, waits
from tests.shop import MailTask, send_mail

pytestmark = pytest.mark.service

# From any date, one of these ends in the other half of the year.
SPANS = [timedelta(days=days) for days in (60, 120, 180, 240, 300)]
HOUR = timedelta(hours=1)


@pytest.fixture
def berlin(scratch: Session) -> Session:
    scratch.execute(text("SET LOCAL TimeZone = 'Europe/Berlin'"))
    return scratch


def between(start: datetime | None, end: datetime | None) -> timedelta:
    """In hours that pass, and not on a calendar, as Python has it for two times of one time zone."""
    assert start is not None
    assert end is not None
    return end.astimezone(UTC) - start.astimezone(UTC)


def options(span: timedelta) -> dict[str, Any]:
    return {
        "delay": span,
        "cancellation": Cancellation(start_within=span, max_duration=span),
        "idempotency_key": f"every {span}",
        "hold": "forever",
        "key_ttl": span,
    }


def singly(durable: Durable) -> list[MailTask]:
    return [durable.spawn(send_mail.call(to="x"), **options(span)).task for span in SPANS]


def in_a_batch(durable: Durable) -> list[MailTask]:
    calls = [send_mail.call(to="x").using(**options(span)) for span in SPANS]
    return [spawned.task for spawned in durable.spawn_many(calls)]


@pytest.mark.parametrize("spawn", [singly, in_a_batch])
def test_delays_deadlines_and_ttls_have_the_given_length(berlin, spawn):
    for task, span in zip(spawn(Durable(berlin)), SPANS, strict=True):
        assert between(task.created_at, task.available_at) == span
        assert between(task.available_at, task.cancel_at) == span
        assert between(task.created_at, task.key_expires_at) == span


def test_delays_of_updated_tasks_are_as_long_as_was_asked(berlin):
    durable = Durable(berlin)
    for span in SPANS:
        again = {**options(span), "hold": "active", "key_ttl": None, "on_duplicate": "update"}
        task = durable.spawn(send_mail.call(to="x"), **again).task
        before = berlin.scalar(select(func.clock_timestamp()))
        durable.spawn(send_mail.call(to="y"), **again)
        assert abs(between(before, task.available_at) - span) < HOUR / 2
        assert between(task.available_at, task.cancel_at) == span


def test_delays_of_task_objects_are_as_long_as_was_asked(berlin):
    for span in SPANS:
        handler = MailTask.handler(
            f"later by {span}", delay=span, cancellation=Cancellation(start_within=span)
        )(send_later)
        try:
            berlin.add(task := handler.task(to="x"))
            berlin.flush()
        finally:
            del MailTask.__handlers__[handler.name]
        assert abs(between(task.created_at, task.available_at) - span) < HOUR / 2
        assert between(task.available_at, task.cancel_at) == span


def send_later(ctx: object, to: str) -> None: ...


def test_what_a_run_may_take_and_waits_for_is_as_long_as_was_asked(berlin):
    durable = Durable(berlin)
    for span in SPANS:
        durable.spawn(send_mail.call(to="x"), cancellation=Cancellation(max_duration=span))
        [claim] = claims.claim(berlin, MailTask, names=["send"], worker="w", lease=span, limit=1)
        task = berlin.get_one(MailTask, claim.task_id)
        assert between(task.first_started_at, task.cancel_at) == span
        assert between(task.started_at, task.lease_expires_at) == span
        claims.extend(berlin, MailTask, {claim.task_id: claim.token}, lease=span)
        berlin.refresh(task)
        assert abs(between(task.started_at, task.lease_expires_at) - span) < HOUR / 2

        waits.find_or_register(
            berlin, MailTask, claim, "wait", waits.AwaitedEvent(MailTask, "paid"), timeout=span
        )
        wait = berlin.scalars(select(MailTask.Wait).where(MailTask.Wait.task_id == claim.task_id)).one()
        assert between(wait.created_at, wait.timeout_at) == span

        runs.sleep(berlin, MailTask, claim, "$sleep", delay=span)
        saved = select(MailTask.Checkpoint).where(MailTask.Checkpoint.task_id == claim.task_id)
        checkpoint = berlin.scalars(saved).one()
        assert between(checkpoint.created_at, datetime.fromisoformat(checkpoint.value)) == span


def test_a_retried_task_has_as_long_as_it_had(berlin):
    durable = Durable(berlin)
    for span in SPANS:
        spawned = durable.spawn(send_mail.call(to="x"), **{**options(span), "delay": None})
        claims.claim(berlin, MailTask, names=["send"], worker="w", lease=HOUR, limit=1)
        durable.cancel(spawned)
        durable.retry(spawned)
        berlin.refresh(spawned.task)
        assert abs(between(spawned.task.first_started_at, spawned.task.cancel_at) - span) < HOUR / 2
        durable.cancel(spawned)
        copy = durable.retry(spawned, as_new=True).task
        assert between(copy.created_at, copy.key_expires_at) == span
        durable.cancel(MailTask, copy.id)


def test_what_is_kept_for_some_days_is_kept_for_that_long(berlin):
    durable = Durable(berlin)
    for span in SPANS:
        for margin in (HOUR / 2, -HOUR / 2):
            spawned = durable.spawn(send_mail.call(to="x"))
            durable.cancel(spawned)
            ended = berlin.scalar(select(func.clock_timestamp())).astimezone(UTC) - span + margin
            berlin.execute(update(MailTask).where(MailTask.id == spawned.task_id).values(finished_at=ended))
            cleaned = durable.clean_up(MailTask, older_than=span)
            assert cleaned.tasks == (margin < timedelta(0))
            if not cleaned.tasks:
                berlin.delete(spawned.task)
                berlin.flush()
