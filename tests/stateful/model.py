"""What a queue's tables should hold, in plain Python: written from the documentation, without a line of the package's.

Time is a number of seconds. Every verb changes the model and returns what the service should, or raises Refused with the
name of the error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from tests.stateful.tasks import LEASE, Ask, Event, Refused, Task


class Model:
    """One queue."""

    def __init__(self) -> None:
        self.now = 0
        self.tasks: dict[UUID, Task] = {}
        self.events: list[Event] = []

    # Spawning and keys

    def holder(self, key: str | None) -> Task | None:
        found = [task for task in self.tasks.values() if key is not None and task.key == key and task.holds]
        assert len(found) <= 1
        return found[0] if found else None

    def expired(self, task: Task) -> bool:
        return task.over and task.expires is not None and task.expires <= self.now

    def spawn(self, ask: Ask) -> tuple[bool, Task | None, bool]:
        """Whether a task is to be created; else which one is there, and whether its params match."""
        holder = self.holder(ask.key)
        if holder is not None and self.expired(holder):
            holder.hold = holder = None
        if holder is None:
            return True, None, True
        match = holder.params == ask.params
        if holder.name != ask.name or (ask.strict and not match):
            raise Refused("IdempotencyConflict")
        if ask.on_duplicate == "raise":
            raise Refused("DuplicateTask")
        if ask.on_duplicate == "replace":
            self.cancel(holder)
            holder.hold = None if holder.holds else holder.hold
            return True, None, True
        if ask.on_duplicate == "update" and not holder.first_started and not holder.over:
            holder.params, holder.priority = ask.params, ask.priority
            self._schedule(holder, ask)
            return False, holder, True
        return False, holder, match

    def create(self, ask: Ask, task_id: UUID, parent: UUID | None = None) -> Task:
        task = Task(task_id, ask.name, ask.params, self.now, self.now, priority=ask.priority, parent=parent)
        task.max_attempts, task.retry_delay = ask.max_attempts, ask.retry_delay
        if ask.key is not None:
            task.key, task.hold = ask.key, ask.hold
            task.expires = None if ask.ttl is None else self.now + ask.ttl
        self._schedule(task, ask)
        self.tasks[task_id] = task
        return task

    def _schedule(self, task: Task, ask: Ask) -> None:
        task.available = self.now + ask.delay
        task.state = "sleeping" if ask.delay else "pending"
        task.max_duration = ask.max_duration
        task.cancel_at = None if ask.start_within is None else task.available + ask.start_within

    def release_key(self, key: str) -> bool:
        holder = self.holder(key)
        if holder is None or self.expired(holder):
            return False
        holder.hold = None
        return True

    # Claims

    def claim(self, names: Iterable[str], limit: int) -> list[Task]:
        ready = [t for t in self.tasks.values() if t.state == "pending" and t.name in names]
        ready = [t for t in ready if not self._late(t)]
        ready.sort(key=lambda t: (t.priority, t.available, t.id))
        for task in ready[:limit]:
            if not task.first_started:
                task.cancel_at = None if task.max_duration is None else self.now + task.max_duration
            task.state, task.token, task.lease = "running", task.token + 1, self.now + LEASE
            task.started = task.first_started = True
        return ready[:limit]

    def _late(self, task: Task) -> bool:
        return task.cancel_at is not None and task.cancel_at <= self.now

    def held(self, task_id: UUID, token: int) -> bool:
        task = self.tasks.get(task_id)
        return task is not None and task.state == "running" and task.token == token

    def check(self, task_id: UUID, token: int) -> Task:
        task = self.tasks.get(task_id)
        if task is not None and task.state == "cancelled":
            raise Refused("Cancelled")
        if task is None or not self.held(task_id, token):
            raise Refused("LeaseLost")
        return task

    def release(self, task: Task) -> None:
        task.state, task.started, task.lease = "pending", False, None
        task.token += 1

    # How runs end

    def _end(self, task: Task, state: str) -> None:
        if task.parent is not None or task.awaited or task.waits:
            self.events.append(Event(f"$task:{task.id}", None))
        task.state, task.finished, task.lease = state, self.now, None

    def complete(self, task_id: UUID, token: int, result: Any) -> None:
        task = self.tasks.get(task_id)
        if task is not None and task.state == "completed" and task.token == token:
            return  # the first result stays
        task = self.check(task_id, token)
        task.result = result
        self._end(task, "completed")

    def fail(self, task: Task, delay: int | None) -> bool:
        """Another attempt in `delay`, or none. Whether that was its end."""
        task.runs.append((task.attempt, "failed"))
        task.token += 1
        late = self._late(task)
        if delay is None or late:
            self._end(task, "failed" if delay is None else "cancelled")
            return True
        task.attempt, task.started, task.lease = task.attempt + 1, False, None
        task.available = self.now + delay
        task.state = "sleeping" if delay else "pending"
        return False

    def next_delay(self, task: Task, *, retryable: bool = True) -> int | None:
        spent = task.max_attempts is not None and task.attempt >= task.max_attempts
        return None if spent or not retryable else task.retry_delay

    def _doze(self, task: Task, until: int | None) -> None:
        task.state, task.available, task.lease = "sleeping", until, None
        task.token += 1

    def sleep(self, task: Task, step: str, delay: int) -> bool:
        until = task.saved.setdefault(step, self.now + delay)
        if until > self.now:
            self._doze(task, until)
        return until > self.now

    # Cancelling

    def children(self, task: Task) -> Iterator[Task]:
        return (child for child in self.tasks.values() if child.parent == task.id and not child.over)

    def cancel(self, task: Task) -> bool:
        if task.over:
            return False
        self.cancel_alone(task)
        self.cancel_descendants(task)
        return True

    def cancel_alone(self, task: Task) -> None:
        if task.started:
            task.runs.append((task.attempt, "cancelled"))
        self._end(task, "cancelled")
        task.token += 1
        task.available = None

    def cancel_descendants(self, task: Task) -> None:
        for child in list(self.children(task)):
            self.cancel(child)

    # Sweeps

    def overdue_leases(self) -> list[Task]:
        due = [t for t in self.tasks.values() if t.state == "running" and t.lease < self.now]
        return sorted(due, key=lambda t: (t.lease, t.id))

    def sweep_expired(self) -> list[Task]:
        rows = self.overdue_leases()

        def delay(task: Task) -> int | None:
            return None if self.next_delay(task) is None else 0

        final = [t for t in rows if delay(t) is None or t.cancel_at is not None]
        alone = [t for t in rows if t not in final or not list(self.children(t))]
        for task in alone or rows[:1]:
            if self.fail(task, delay(task)) and not alone:
                self.cancel_descendants(task)
        return alone or rows[:1]

    def overdue(self) -> list[Task]:
        return [t for t in self.tasks.values() if not t.over and self._late(t)]

    def promote(self) -> int:
        due = [t for t in self.tasks.values() if t.state == "sleeping" and t.available is not None]
        due = [t for t in due if t.available <= self.now]
        for task in due:
            task.state = "pending"
        return len(due)

    # Retries

    def retry(self, task: Task, *, as_new: bool, detach: bool) -> tuple[bool, bool]:
        """Whether it wants its key back, or handed on, and whether it gets it."""
        if task.state not in ("failed", "cancelled"):
            raise Refused("InvalidState")
        back = ("succeeded", "active") if task.first_started else ("succeeded", "active", "queued")
        wants = task.key is not None and (task.hold is not None if as_new else task.hold in back)
        holder = self.holder(task.key)
        if not wants or holder is None or holder is task:
            return wants, wants
        if self.expired(holder):
            holder.hold = None
            return True, True
        if not detach:
            raise Refused("KeyTaken")
        return True, False

    def again(self, task: Task, *, detached: bool) -> None:
        if detached:
            task.hold = None
        task.waits.clear()
        task.attempt += task.started
        if task.max_attempts is not None:
            task.max_attempts = max(task.max_attempts, task.attempt)
        task.token += 1
        task.state, task.available, task.finished, task.started = "pending", self.now, None, False
        starts_anew = task.first_started and task.max_duration is not None
        task.cancel_at = self.now + task.max_duration if starts_anew else None

    def copy(self, task: Task, new_id: UUID, *, keyed: bool) -> None:
        new = Task(new_id, task.name, task.params, self.now, self.now, priority=task.priority)
        new.max_attempts, new.retry_delay = task.max_attempts, task.retry_delay
        new.max_duration = task.max_duration
        if keyed:
            new.key, new.hold = task.key, task.hold
            new.expires = None if task.expires is None else self.now + task.expires - task.created
        if task.hold == "forever":
            task.hold = None
        self.tasks[new_id] = new
