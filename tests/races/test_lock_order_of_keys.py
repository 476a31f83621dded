"""Transactions that take keys and the rows of relatives, where the order of locks is less plain than from root to leaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import child_tasks
from sa_durable.telemetry import Spawned, on_spawn, remove_hook
from tests.consistency import complaints
from tests.races.overlapping import overlap, stage
from tests.races.racing import no_deadlock
from tests.races.sampling import FULL
from tests.races.starting_states import KEYS, Scene, empty, scene
from tests.shop import BillingTask, MailTask, charge, send_mail

pytestmark = pytest.mark.service
Act = Callable[[Session, Scene], Any]


def every_way(
    engine: Engine,
    where: str,
    first: Act,
    second: Act,
    *,
    prepare: Callable[[Scene], None] | None = None,
    step: int | None = None,
) -> set[str]:
    """Both orders, the first one held before its statements, each or a few of them: no deadlock, and all is well.
    Returns what they came to."""
    seen: set[str] = set()
    with no_deadlock(engine), stage(engine) as here:
        for early, late in ((first, second), (second, first)):
            met, sent = None, 1
            for hold_after in (None, *range(1, 40)):
                if hold_after and (
                    hold_after >= sent or not (FULL or hold_after % (step or 1 + sent // 6) == 0)
                ):
                    continue
                empty(engine)
                rows = scene(engine, where)
                if prepare:
                    prepare(rows)
                acts = [lambda session, act=act, rows=rows: act(session, rows) for act in (early, late)]
                met = overlap(here, *acts, hold_after=hold_after)
                sent = max(sent, met.sent)
                assert complaints(engine, BillingTask, MailTask) == [], (hold_after, met)
                seen |= {met.first, met.second}
    return seen


def replacing(key: str) -> Any:
    return charge.call(2).using(idempotency_key=key, on_duplicate="replace")


def cancel_root(session: Session, rows: Scene) -> object:
    return Durable(session).cancel(MailTask, rows.root.task_id)


def test_a_parent_replaces_its_childs_key_while_it_is_cancelled(engine):
    def spawn(session: Session, rows: Scene) -> object:
        return child_tasks.spawn(session, MailTask, rows.root, "$s", [replacing(KEYS[0])], keywords={})

    seen = every_way(engine, "running", spawn, cancel_root)
    assert {"done", "Cancelled"} <= seen <= {"done", "Cancelled", "RetryTransaction"}


@pytest.mark.parametrize("elder", [True, False])
def test_a_child_replaces_its_siblings_key_while_their_parent_is_cancelled(engine, elder):
    who, whom = (0, 1) if elder else (1, 0)

    def spawn(session: Session, rows: Scene) -> object:
        calls = [replacing(KEYS[whom])]
        return child_tasks.spawn(session, BillingTask, rows.twins[who], "$s", calls, keywords={})

    seen = every_way(engine, "running", spawn, cancel_root)
    # A cascade locks brothers and sisters in the order of their age.
    assert {"done", "Cancelled"} <= seen
    assert seen <= ({"done", "Cancelled", "RetryTransaction"} if elder else {"done", "Cancelled"})


@pytest.mark.parametrize("how", ["return", "update", "replace"])
@pytest.mark.parametrize("where", ["completed", "new"])
def test_batch_takes_keys_in_order_whatever_happens_to_holders(engine, where, how):
    """As who spawns them one by one does. (Once it took all free ones first, and then came back for the others.)"""
    calls = [charge.call(2).using(idempotency_key=key, on_duplicate=how) for key in sorted([*KEYS, "k3"])]

    def singly(session: Session, _: Scene) -> object:
        return [Durable(session).spawn(call) for call in calls]

    def batch(session: Session, _: Scene) -> object:
        return Durable(session).spawn_many(calls)

    assert every_way(engine, where, singly, batch) == {"done"}


def test_batch_undoes_keys_taken_too_early_when_a_holder_leaves(engine, session):
    """Another batch has the key by then, and wants what this one has: this one lets it go."""
    with session.begin():
        Durable(session).spawn(charge.call(1), idempotency_key="k1")
    calls = [charge.call(2).using(idempotency_key=key) for key in ("k1", "k2")]

    def batch(session: Session) -> list[bool]:
        return [spawned.created for spawned in Durable(session).spawn_many(calls)]

    seen: list[Spawned] = []
    hook = on_spawn(seen.append)
    with no_deadlock(engine), stage(engine) as here, here.part(batch, hold_after=3) as first:
        assert not here.until_still(first)  # it has found k1 held, and has k2; next it looks for the holder
        with session.begin():
            Durable(session).release_key(BillingTask, "k1")
        with here.part(batch) as second:
            assert here.until_still(second)  # it has k1, and wants k2
            first.go.set()
            while here.until_still(first):  # it wants k1, with empty hands
                if second.outcome.done():
                    second.session.commit()
            first.session.commit()
            assert (first.outcome.result(), second.outcome.result(20)) == ("done", "done")
            second.session.commit()
    remove_hook(hook)
    assert sorted(spawned.outcome for spawned in seen) == ["created", "created", "returned", "returned"]


def make_generations(rows: Scene) -> None:
    """The younger twin becomes the elder one's child."""
    elder, younger = rows.twins
    born = {"parent_queue": elder.queue, "parent_id": elder.task_id}
    with rows.engine.begin() as connection:
        connection.execute(
            update(BillingTask.__table__).where(BillingTask.id == younger.task_id).values(born)
        )


@pytest.mark.parametrize("prepare", [None, make_generations], ids=["siblings", "parent and child"])
@pytest.mark.parametrize(("where", "how"), [("running", "replace"), ("new", "update")])
def test_batch_against_a_cascade_neither_deadlocks_nor_fails(engine, where, how, prepare):
    """Keys are taken in their order and families from root to leaf: a batch lets go of what it has, and waits."""
    calls = [charge.call(2).using(idempotency_key=key, on_duplicate=how) for key in KEYS]

    def batch(session: Session, _: Scene) -> object:
        return Durable(session).spawn_many(calls)

    assert every_way(engine, where, batch, cancel_root, prepare=prepare, step=3) == {"done"}


def test_a_batch_that_has_taken_keys_of_another_queue_waits_for_no_holder(engine, session):
    rows = scene(engine, "running")
    calls = [replacing(KEYS[0]), send_mail.call("ada").using(idempotency_key="k", on_duplicate="replace")]
    with session.begin():
        sent = Durable(session).spawn(send_mail.call("ada"), idempotency_key="k")
    with stage(engine) as here, Session(engine) as other:
        other.execute(select(MailTask).where(MailTask.id == sent.task_id).with_for_update())
        with here.part(lambda session: Durable(session).spawn_many(calls)) as batch:
            assert not here.until_still(batch)
            assert batch.outcome.result() == "RetryTransaction"
            batch.session.commit()
    assert Durable(session).result(BillingTask, rows.twins[0].task_id).state == "running"


def test_what_a_batch_undid_is_not_counted(engine, session):
    """It has replaced one holder when it finds that somebody has locked the next."""
    rows = scene(engine, "running")
    seen: list[Spawned] = []
    hook = on_spawn(seen.append)
    with stage(engine) as here, Session(engine) as other:
        other.execute(select(BillingTask).where(BillingTask.id == rows.twins[0].task_id).with_for_update())
        with here.part(
            lambda session: Durable(session).spawn_many([replacing(key) for key in KEYS])
        ) as batch:
            assert here.until_still(batch)
            other.rollback()
            assert batch.outcome.result(20) == "done"
            batch.session.commit()
    remove_hook(hook)
    assert [spawned.outcome for spawned in seen] == ["replaced", "replaced"]
