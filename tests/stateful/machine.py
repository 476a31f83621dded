"""The services against the model: every verb, in any order, as a transaction that commits or is rolled back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from sa_durable.services import maintenance
from sa_durable.values import Claim
from tests.consistency import complaints
from tests.races.starting_states import empty
from tests.shop import BillingTask, MailTask
from tests.stateful.comparing import FOREVER, has_tasks
from tests.stateful.model import Model
from tests.stateful.requests import CALLS, asks, keep, pick
from tests.stateful.rows import START, differences
from tests.stateful.running import Running
from tests.stateful.tasks import Ask


class ServiceMachine(Running):
    """`client`, `engine` and `clock` are given by the test."""

    @initialize(some=st.lists(asks, min_size=2, max_size=4))
    def begin(self, some: list[Ask]) -> None:
        empty(self.engine)
        self.clock.freeze(START)
        self.model, self.claims, self.retried = Model(), list[Claim](), set[UUID]()
        self.spawn_many([Ask(**{**vars(ask), "on_duplicate": "return", "key": None}) for ask in some], True)
        self.claim(2, list(CALLS), True)

    # What happens to tasks

    @has_tasks
    @rule(number=pick, keep=keep)
    def cancel(self, number: int, keep: bool) -> None:
        task_id = self.task(number).id

        def ideal(model: Model, got: bool) -> None:
            assert got == model.cancel(model.tasks[task_id])

        self.verb(lambda: self.client.durable.cancel(BillingTask, task_id), ideal, keep=keep)

    @has_tasks
    @rule(number=pick, as_new=st.booleans(), detach=st.booleans(), keep=keep)
    def retry(self, number: int, as_new: bool, detach: bool, keep: bool) -> None:
        task_id = self.task(number).id

        def ideal(model: Model, got: Any) -> None:
            task = model.tasks[task_id]
            wants, gets = model.retry(task, as_new=as_new, detach=detach)
            assert got is not None
            if as_new:
                model.copy(task, got.task_id, keyed=wants and gets)
            else:
                model.again(task, detached=wants and not gets)
            there = model.tasks[got.task_id]
            assert (got.created, got.state, got.attempt) == (as_new, "pending", there.attempt)

        how = {"as_new": as_new, "detach": detach}
        self.verb(lambda: self.client.durable.retry(BillingTask, task_id, **how), ideal, keep=keep)
        self.retried.add(task_id)

    def _sweep_expired(self) -> None:
        def ideal(model: Model, got: list[Any]) -> None:
            swept = model.sweep_expired()
            assert {run.task_id for run in got} == {task.id for task in swept}
            assert {run.task_id for run in got if run.retried} == {t.id for t in swept if not t.over}

        self.verb(lambda: self.run(maintenance.sweep_expired, BillingTask, limit=FOREVER), ideal)

    def _sweep_overdue(self) -> None:
        def ideal(model: Model, got: maintenance.Overdue) -> None:
            late = model.overdue()
            alone = {task.id for task in late if not list(model.children(task))}
            if not alone and late:  # the longest overdue; which of several, nobody says
                first = min(task.cancel_at or 0 for task in late)
                [one] = got.cancelled
                assert model.tasks[one].cancel_at == first
                alone = {one}
            assert set(got.cancelled) == alone
            for task_id in got.cancelled:
                model.cancel(model.tasks[task_id])

        self.verb(lambda: self.run(maintenance.sweep_overdue, BillingTask, limit=FOREVER), ideal)

    def _promote(self) -> None:
        def ideal(model: Model, got: maintenance.Promoted) -> None:
            assert got.woken == model.promote()

        self.verb(lambda: self.run(maintenance.promote, BillingTask, limit=FOREVER), ideal)

    @rule(by=st.sampled_from([1, 5, 30, 61, 3600]))
    def time_passes(self, by: int) -> None:
        self.clock.advance(timedelta(seconds=by))
        self.model.now += by

    @rule(
        what=st.sampled_from(["settle", "wake", "forget_idle", "sweep_expired", "sweep_overdue", "promote"])
    )
    def worker(self, what: str) -> None:
        """What workers do about tasks that they don't run."""
        getattr(self, f"_{what}")()

    # After each verb

    @invariant()
    def the_tables_are_what_the_model_says(self) -> None:
        if hasattr(self, "model"):
            assert differences(self.engine, self.model) == []

    def teardown(self) -> None:
        self.client.session.rollback()
        assert complaints(self.engine, BillingTask, MailTask, orphans=self.retried) == []
