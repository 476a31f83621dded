"""Spawns, keys and claims."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from hypothesis import strategies as st
from hypothesis.stateful import rule

from sa_durable.services import claims
from sa_durable.values import Claim
from tests.shop import BillingTask
from tests.stateful.comparing import LEASE, Trying, has_claims
from tests.stateful.model import Model
from tests.stateful.requests import CALLS, as_asked, asks, call_of, keep, pick
from tests.stateful.tasks import Ask


class Claiming(Trying):
    # Spawning and keys

    def _spawned(self, model: Model, ask: Ask, got: Any, parent: UUID | None = None) -> None:
        created, there, match = model.spawn(as_asked(ask))
        if created:
            there = model.create(as_asked(ask), got.task_id if got else uuid4(), parent)
        if got is None:
            return  # it was refused; or another one of its batch, and then `verb` finds out
        assert there is not None
        seen = (got.created, got.task_id, got.state, got.attempt, got.params_match)
        assert seen == (created, there.id, there.state, there.attempt, match)

    @rule(ask=asks, keep=keep)
    def spawn(self, ask: Ask, keep: bool) -> None:
        self.verb(
            lambda: self.client.durable.spawn(call_of(ask)),
            lambda model, got: self._spawned(model, ask, got),
            keep=keep,
        )

    @rule(some=st.lists(asks, min_size=2, max_size=4), keep=keep)
    def spawn_many(self, some: list[Ask], keep: bool) -> None:
        order = sorted(range(len(some)), key=lambda i: some[i].key or "")

        def ideal(model: Model, got: Any) -> None:
            for i in order:
                self._spawned(model, some[i], got and got[i])

        self.verb(lambda: self.client.durable.spawn_many([call_of(ask) for ask in some]), ideal, keep=keep)

    @rule(key=st.sampled_from(["a", "b"]), release=st.booleans(), keep=keep)
    def key(self, key: str, release: bool, keep: bool) -> None:
        self._release_key(key, keep=keep) if release else self._find_by_key(key)

    def _release_key(self, key: str, *, keep: bool) -> None:
        def ideal(model: Model, got: bool) -> None:
            assert got == model.release_key(key)

        self.verb(lambda: self.client.durable.release_key(BillingTask, key), ideal, keep=keep)

    def _find_by_key(self, key: str) -> None:
        def ideal(model: Model, got: Any) -> None:
            holder = model.holder(key)
            held = None if holder is None or model.expired(holder) else holder.id
            assert (got and got.id) == held

        self.verb(lambda: self.client.durable.find_by_key(BillingTask, key), ideal, keep=False)

    # Claims

    @rule(limit=st.integers(1, 3), names=st.sampled_from([["charge"], ["refund", "charge"]]), keep=keep)
    def claim(self, limit: int, names: list[str], keep: bool) -> None:
        def ideal(model: Model, got: list[Claim]) -> None:
            wanted = [(t.id, t.attempt, t.token, {"order_id": t.params}) for t in model.claim(names, limit)]
            seen = [(c.task_id, c.attempt, c.token, {"order_id": c.params["order_id"]}) for c in got]
            assert seen == wanted

        terms: dict[str, Any] = {"names": names, "worker": "w", "lease": LEASE, "limit": limit}
        self.claims += self.verb(lambda: self.run(claims.claim, BillingTask, **terms), ideal, keep=keep) or []

    @has_claims
    @rule(number=pick, back=st.booleans())
    def extend_or_give_back(self, number: int, back: bool) -> None:
        held = {claim.task_id: claim.token for claim in (self.a_claim(number), self.a_claim(0))}

        def ideal(model: Model, got: set[UUID]) -> None:
            ours = {task_id for task_id, token in held.items() if model.held(task_id, token)}
            assert got == ours
            for task_id in ours:
                if back:
                    model.release(model.tasks[task_id])
                else:
                    model.tasks[task_id].lease = model.now + 60

        service: Any = claims.release if back else claims.extend
        options = {} if back else {"lease": LEASE}
        self.verb(lambda: self.run(service, BillingTask, held, **options), ideal)

    @has_claims
    @rule(number=pick)
    def hand_over(self, number: int) -> None:
        """A claim is given back, and somebody else has the task."""
        self.extend_or_give_back(4 * number, True)
        self.claim(3, list(CALLS), True)
