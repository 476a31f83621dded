"""What runs do: they end, sleep, save, spawn, and wait for events and tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import rule

from sa_durable.services import checkpoints, child_tasks, events, runs, waits
from sa_durable.values import Claim
from tests.shop import BillingTask
from tests.stateful import waits as ideal_waits
from tests.stateful.claiming import Claiming
from tests.stateful.comparing import FAILURE, FOREVER, has_claims
from tests.stateful.model import Model
from tests.stateful.requests import as_asked, asks, call_of, keep, pick, seconds_of
from tests.stateful.tasks import Ask, Event, Refused


class Running(Claiming):
    # How runs end

    @has_claims
    @rule(number=pick, keep=keep)
    def complete(self, number: int, keep: bool) -> None:
        claim, result = self.a_claim(number), f"of token {number}"
        self.verb(
            lambda: self.run(runs.complete, BillingTask, claim, result),
            lambda model, _: model.complete(claim.task_id, claim.token, result),
            keep=keep,
        )

    @has_claims
    @rule(number=pick, retryable=st.sampled_from([True, True, False]), keep=keep)
    def fail(self, number: int, retryable: bool, keep: bool) -> None:
        claim = self.a_claim(number)

        def ideal(model: Model, _: Any) -> None:
            stored = model.tasks.get(claim.task_id)
            if stored is not None and stored.state == "completed" and stored.token == claim.token:
                return  # a reply was lost: leases.Stands.STORED
            task = model.check(claim.task_id, claim.token)
            if model.fail(task, model.next_delay(task, retryable=retryable)):
                model.cancel_descendants(task)

        self.verb(
            lambda: self.run(runs.fail, BillingTask, claim, FAILURE, retryable=retryable), ideal, keep=keep
        )

    @has_claims
    @rule(number=pick, step=st.sampled_from("st"), delay=st.sampled_from([0, 5, 60]))
    def sleep(self, number: int, step: str, delay: int) -> None:
        claim, name = self.a_claim(number), f"$sleep:{step}"

        def ideal(model: Model, got: bool) -> None:
            assert got == model.sleep(model.check(claim.task_id, claim.token), name, delay)

        self.verb(lambda: self.run(runs.sleep, BillingTask, claim, name, delay=seconds_of(delay)), ideal)

    @has_claims
    @rule(number=pick, step=st.sampled_from("uv"), value=st.integers(0, 9))
    def save(self, number: int, step: str, value: int) -> None:
        claim = self.a_claim(number)

        def ideal(model: Model, got: int) -> None:
            assert got == model.check(claim.task_id, claim.token).saved.setdefault(step, value)

        self.verb(lambda: self.run(checkpoints.save, BillingTask, claim, step, str(value)), ideal)

    @has_claims
    @rule(number=pick, step=st.sampled_from("xy"), ask=asks)
    def spawn_a_child(self, number: int, step: str, ask: Ask) -> None:
        claim, name = self.a_claim(number), f"$spawn:{step}"

        def ideal(model: Model, got: list[Any]) -> None:
            created, there, _ = model.spawn(as_asked(ask))
            task = model.check(claim.task_id, claim.token)
            if name in task.saved:
                raise Refused("AlreadySaved")
            [saved] = got
            assert saved["created"] == created
            if created:
                model.create(as_asked(ask), UUID(saved["task_id"]), claim.task_id)
            else:
                assert there is not None and saved["task_id"] == str(there.id)
            task.saved[name] = saved["task_id"]

        self.verb(
            lambda: self.run(child_tasks.spawn, BillingTask, claim, name, [call_of(ask)], keywords={}), ideal
        )

    # Events and waits

    @rule(name=st.sampled_from("ef"), payload=st.integers(0, 3), keep=keep)
    def emit(self, name: str, payload: int, keep: bool) -> None:
        self.verb(
            lambda: self.client.durable.emit_event(BillingTask, name, payload),
            lambda model, _: model.events.append(Event(name, payload)),
            keep=keep,
        )

    def _settle(self) -> None:
        def ideal(model: Model, got: events.Settled) -> None:
            names = ideal_waits.unsettled(model)
            assert got.names == len(names)
            ideal_waits.settle(model, names)

        self.verb(lambda: self.run(events.settle, BillingTask, limit=FOREVER), ideal)

    def _wake(self) -> None:
        def ideal(model: Model, got: int) -> None:
            assert got == ideal_waits.wake(model)

        self.verb(lambda: self.run(events.wake, BillingTask, limit=FOREVER), ideal)

    def _forget_idle(self) -> None:
        self.verb(
            lambda: self.run(events.forget_idle, BillingTask, limit=FOREVER),
            lambda model, _: ideal_waits.forget_idle(model),
        )

    @rule(name=st.sampled_from("ef"))
    def an_event_comes(self, name: str) -> None:
        self.emit(name, 1, True)
        self._settle()
        self._wake()

    @has_claims
    @rule(number=pick, name=st.sampled_from("ef"), timeout=st.sampled_from([None, 5, 3600]))
    def await_event(self, number: int, name: str, timeout: int | None) -> None:
        claim, step = self.a_claim(number), f"$await:{name}"

        def ideal(model: Model, got: Any) -> None:
            found = ideal_waits.find_event(model, name)
            wanted = ideal_waits.wait_for(model, claim.task_id, claim.token, step, [name], found, timeout)
            assert got == wanted

        self._wait(claim, step, waits.AwaitedEvent(BillingTask, name), timeout, ideal)

    @has_claims
    @rule(number=pick, others=st.lists(pick, min_size=1, max_size=3), timeout=st.sampled_from([None, 5]))
    def join(self, number: int, others: list[int], timeout: int | None) -> None:
        claim = self.a_claim(number)
        ids = list(dict.fromkeys(self.task(n).id for n in others)) if self.model.tasks else []
        ids = [task_id for task_id in ids if task_id != claim.task_id]
        step = "$join:" + ",".join(str(list(self.model.tasks).index(task_id)) for task_id in ids)

        def ideal(model: Model, got: Any) -> None:
            found = ideal_waits.find_ends(model, ids)
            names = [f"$task:{i}" for i in ids if i in model.tasks and not model.tasks[i].over]
            wanted = ideal_waits.wait_for(model, claim.task_id, claim.token, step, names, found, timeout)
            assert (got if got is None or isinstance(got, dict) else [e["state"] for e in got]) == wanted

        if ids:
            self._wait(claim, step, waits.AwaitedTasks([(BillingTask, i) for i in ids]), timeout, ideal)

    def _wait(
        self, claim: Claim, step: str, what: waits.Awaited, timeout: int | None, ideal: Callable[..., None]
    ) -> None:
        """As the runtime does it: transactions one after the other; what the first ones did stays if the last one finds
        the claim gone."""
        task = self.model.tasks.get(claim.task_id)
        if task is not None and step in task.saved:
            return  # a replay doesn't ask

        def real() -> Any:
            while True:
                found = self.run(
                    waits.find_or_register, BillingTask, claim, step, what, timeout=seconds_of(timeout)
                )
                if isinstance(found, waits.Registered):
                    self.client.session.commit()
                    found = self.run(waits.sleep, BillingTask, claim, step, what)
                if not isinstance(found, waits.Prerequisites):
                    return None if found is None else found.value
                for act in found.first:
                    self.run(act)
                    self.client.session.commit()

        if not self.model.held(claim.task_id, claim.token):
            if isinstance(what, waits.AwaitedEvent):
                ideal_waits.find_event(self.model, what.name)
            elif isinstance(what, waits.AwaitedTasks):
                ideal_waits.find_ends(self.model, [task_id for _, task_id in what.tasks])
        self.verb(real, ideal)
