"""What tests.consistency checks, it finds: each of these rows is one that no statement may leave."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.consistency import complaints
from tests.races.starting_states import TWINS, scene
from tests.shop import BillingTask, MailTask

pytestmark = pytest.mark.service
TASKS, RUNS, WAITS, EVENTS = (f"durable_billing_{role}" for role in ("tasks", "runs", "waits", "events"))

# In which scene, what is done to it, and what the complaint says.
AMISS = {
    "an end without a time": ("failed", f"UPDATE {TASKS} SET finished_at = NULL", "finished_at"),
    "a lease of who sleeps": ("due", f"UPDATE {TASKS} SET lease_expires_at = now()", "lease"),
    "a run without a worker": ("running", f"UPDATE {TASKS} SET claimed_by = NULL", "started"),
    "a worker of who is pending": ("pending", f"UPDATE {TASKS} SET claimed_by = 'w'", "nobody has it"),
    "a sleep without an end": ("due", f"UPDATE {TASKS} SET available_at = NULL", "sleeps for something"),
    "a completion without a result": ("completed", f"UPDATE {TASKS} SET result = NULL", "result"),
    "a result of who failed": ("failed", f"UPDATE {TASKS} SET result = '1'", "result"),
    "a failure without an error": ("failed", f"UPDATE {TASKS} SET error = NULL", "error"),
    "an attempt too many": ("pending", f"UPDATE {TASKS} SET max_attempts = 0", "bounded"),
    "a claim without a token": ("running", f"UPDATE {TASKS} SET token = 0", "token"),
    "a failure without history": ("failed", f"DELETE FROM {RUNS}", "history"),
    "an attempt that is missing": ("pending", f"UPDATE {TASKS} SET attempt = 2", "history"),
    "a key of two": (
        "running",
        f"DROP INDEX uq_{TASKS}_key; UPDATE {TASKS} SET idempotency_key = 'k'",
        "is held by",
    ),
    "two events of a name": (
        "awake",
        f"INSERT INTO {EVENTS} (id, name, payload, settled_at) VALUES (gen_random_uuid(), 'e', '1', now())",
        "is 2 events",
    ),
    "a wake-up that is lost": ("awake", f"UPDATE {WAITS} SET settled = false", "sleeps on"),
    "an end that nobody told": (
        "running",
        f"UPDATE {TASKS} SET state = 'cancelled', finished_at = now(), lease_expires_at = NULL",
        "sleeps on",
    ),
    "a child that nobody cancelled": (
        "running",
        "UPDATE durable_mail_tasks SET state = 'cancelled' WHERE parent_id IS NULL AND state = 'running'",
        "and its parent cancelled",
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_scene_is_consistent(engine, name):
    scene(engine, name)
    assert complaints(engine, BillingTask, MailTask) == []


@pytest.mark.parametrize("what", AMISS)
def test_what_is_amiss_is_found(engine, what):
    where, change, says = AMISS[what]
    scene(engine, where)
    with engine.connect() as connection:
        connection.execute(text(change))
        found = complaints(connection, BillingTask, MailTask)
        connection.rollback()
    assert any(says in complaint for complaint in found), found
