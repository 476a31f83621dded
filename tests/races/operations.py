"""What transactions do to the family of a scene: each act is one transaction of the library's, or of a caller's.

Acts on both twins take them in the order of their claims, or, `flipped`, in the other one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import (
    cancellation,
    checkpoints,
    child_tasks,
    claims,
    events,
    maintenance,
    runs,
    waits,
)
from sa_durable.values import Claim, SpawnKeywords, TaskError
from tests.races.starting_states import KEYS, Scene
from tests.shop import BillingTask, MailTask, charge, send_mail

Do: TypeAlias = Callable[[Session, Scene, bool], object]


@dataclass(frozen=True)
class Act:
    """What a transaction does, and the scenes whose twins it wants: those in which it differs most come first."""

    do: Do
    scenes: tuple[str, ...]


RUNNING = ("running", "expired for good", "expired", "overdue")
ALIVE = ("running", "new", "waiting", "pending", "awake", "due", "expired", "expired for good", "overdue")
UNSUCCESSFUL = ("failed", "cancelled")
ALL = (*ALIVE, *UNSUCCESSFUL, "completed")
HOUR = timedelta(hours=1)
FAILURE = TaskError("ValueError", "no")


def _twins(scene: Scene, flipped: bool) -> list[Claim]:
    return scene.twins[::-1] if flipped else scene.twins


def _held(scene: Scene, flipped: bool) -> dict[Any, int]:
    return {claim.task_id: claim.token for claim in _twins(scene, flipped)}


def _spawn(**options: Any) -> Do:
    call = charge.call(2).using(idempotency_key=KEYS[0], **options)
    return lambda session, _, __: Durable(session).spawn(call)


def _spawn_many(**options: Any) -> Do:
    calls = [charge.call(2).using(idempotency_key=key, **options) for key in (*KEYS, "free")]
    return lambda session, _, flipped: Durable(session).spawn_many(calls[::-1] if flipped else calls)


def _complete_many(session: Session, scene: Scene, flipped: bool) -> object:
    ended = [runs.Completed(twin.task_id, twin.token, '"x"') for twin in _twins(scene, flipped)]
    return runs.complete_many(session, BillingTask, ended)


def _fail_many(session: Session, scene: Scene, flipped: bool) -> object:
    """As the runtime's flusher does."""
    ended = [runs.failed(twin, FAILURE) for twin in _twins(scene, flipped)]
    with session.begin_nested() as batch:
        stored = runs.fail_many(session, BillingTask, ended)
        roots = cancellation.with_children(session, BillingTask, stored.final)
        if roots:
            batch.rollback()
    return None if not roots else runs.fail_root(session, BillingTask, ended[0])


def _claim(session: Session, _: Scene, __: bool) -> object:
    terms: dict[str, Any] = {"names": ["charge"], "worker": "w", "lease": HOUR, "limit": 10}
    return claims.claim(session, BillingTask, **terms)


def _retry(**how: bool) -> Do:
    return lambda session, scene, _: Durable(session).retry(BillingTask, scene.twins[0].task_id, **how)


def _look(session: Session, scene: Scene, what: waits.Awaited) -> object:
    return waits.find_or_register(session, BillingTask, scene.twins[0], "$await", what, timeout=None)


def _children(key: str | None = None, **options: Any) -> Do:
    """The root spawns, as a step of its run."""
    keywords: SpawnKeywords = {"idempotency_key": key, **options} if key else {}

    def act(session: Session, scene: Scene, _: bool) -> object:
        calls = [charge.call(2).using(**keywords), charge.call(3)]
        return child_tasks.spawn(session, MailTask, scene.root, "$spawn", calls, keywords={})

    return act


def _grandchild(session: Session, scene: Scene, _: bool) -> object:
    return child_tasks.spawn(
        session, BillingTask, scene.twins[0], "$spawn", [send_mail.call("ada")], keywords={}
    )


# The verbs of issue 6, point 3: each pair of them meets every day.
VERBS: dict[str, Act] = {
    "spawn": Act(_spawn(), (*UNSUCCESSFUL, "completed", *ALIVE)),
    "spawn_many": Act(_spawn_many(), ("completed", *UNSUCCESSFUL, *ALIVE)),
    "claim": Act(_claim, ("new", "pending")),
    "complete": Act(lambda s, scene, _: runs.complete(s, BillingTask, scene.twins[0], "x"), RUNNING),
    "fail": Act(
        lambda s, scene, _: runs.fail(s, BillingTask, scene.twins[0], FAILURE, retryable=False), RUNNING
    ),
    "cancel": Act(lambda s, scene, _: Durable(s).cancel(MailTask, scene.root.task_id), ALIVE),
    "retry": Act(_retry(), UNSUCCESSFUL),
    "emit": Act(lambda s, _, __: Durable(s).emit_event(BillingTask, "e", 2), ("waiting", "awake", *ALL)),
    "settle": Act(lambda s, _, __: events.settle(s, BillingTask, limit=10), ("waiting", "running", *ALL)),
    "wake": Act(lambda s, _, __: events.wake(s, BillingTask, limit=10), ("awake",)),
    "sweep": Act(
        lambda s, _, __: maintenance.sweep_expired(s, BillingTask, limit=10), ("expired for good", "expired")
    ),
    "promote": Act(lambda s, _, __: maintenance.promote(s, BillingTask, limit=10), ("due",)),
    "clean up": Act(
        lambda s, _, __: Durable(s).clean_up(BillingTask, older_than=HOUR), ("failed", "completed", *ALL)
    ),
    "heartbeat": Act(
        lambda s, scene, flipped: claims.extend(s, BillingTask, _held(scene, flipped), lease=HOUR), RUNNING
    ),
    "release_key": Act(lambda s, _, __: Durable(s).release_key(BillingTask, KEYS[0]), ("completed", *ALIVE)),
}

# The rest of what the library does, for the nights.
OTHERS: dict[str, Act] = {
    "spawn, update": Act(_spawn(on_duplicate="update"), ("new", *ALL)),
    "spawn, replace": Act(_spawn(on_duplicate="replace"), ("completed", *ALIVE)),
    "spawn_many, replace": Act(_spawn_many(on_duplicate="replace"), ("completed", *ALIVE)),
    "spawn_many, update": Act(_spawn_many(on_duplicate="update"), ("new", *ALL)),
    "complete many": Act(_complete_many, RUNNING),
    "fail many": Act(_fail_many, RUNNING),
    "cancel a twin": Act(lambda s, scene, _: Durable(s).cancel(BillingTask, scene.twins[0].task_id), ALIVE),
    "retry, detached": Act(_retry(detach=True), UNSUCCESSFUL),
    "retry as new": Act(_retry(as_new=True, detach=True), UNSUCCESSFUL),
    "settle one": Act(lambda s, _, __: events.settle_one(s, BillingTask, "e"), ("waiting",)),
    "catch up": Act(lambda s, _, __: events.catch_up(s, MailTask, {}, limit=10), ("running",)),
    "wake the sleepers": Act(lambda s, _, __: events.wake(s, MailTask, limit=10), ("running",)),
    "forget": Act(lambda s, _, __: events.forget_idle(s, BillingTask, limit=10), ("awake",)),
    "sweep the late": Act(lambda s, _, __: maintenance.sweep_overdue(s, BillingTask, limit=10), ("overdue",)),
    "give back": Act(
        lambda s, scene, flipped: claims.release(s, BillingTask, _held(scene, flipped)), RUNNING
    ),
    "save a step": Act(
        lambda s, scene, _: checkpoints.save(s, BillingTask, scene.twins[0], "s", "1"), RUNNING
    ),
    "sleep": Act(
        lambda s, scene, _: runs.sleep(s, BillingTask, scene.twins[0], "$sleep", delay=HOUR), RUNNING
    ),
    "look": Act(lambda s, scene, _: _look(s, scene, waits.AwaitedEvent(BillingTask, "never")), RUNNING),
    "look for a twin": Act(
        lambda s, scene, _: _look(s, scene, waits.AwaitedTasks([(BillingTask, scene.twins[1].task_id)])),
        RUNNING,
    ),
    "await a twin": Act(lambda s, scene, _: waits.announce(s, BillingTask, scene.twins[0].task_id), ALIVE),
    "spawn children": Act(_children(), ALIVE),
    "spawn a child's key": Act(_children(KEYS[0]), ALIVE),
    "replace a child": Act(_children(KEYS[0], on_duplicate="replace"), ALIVE),
    "spawn a grandchild": Act(_grandchild, RUNNING),
}
ACTS: dict[str, Act] = {**VERBS, **OTHERS}

# What passes over locked rows, or takes no lock: it waits for nobody, whatever the others do.
NEVER_WAITS = frozenset(
    {
        "claim",
        "emit",
        "wake",
        "promote",
        "heartbeat",
        "complete many",
        "wake the sleepers",
        "forget",
        "give back",
    }
)


def scenes_for(first: str, second: str) -> list[str]:
    """The scenes in which both want the twins; else those of the first one, from which the second one is kept."""
    ours, theirs = ACTS[first].scenes, ACTS[second].scenes
    fewer, more = sorted((ours, theirs), key=len)
    return [name for name in dict.fromkeys(fewer) if name in more] or list(dict.fromkeys(ours))
