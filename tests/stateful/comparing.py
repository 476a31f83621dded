"""How a verb is tried: the service and the model come to the same."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from typing import Any, ClassVar

from hypothesis.stateful import RuleBasedStateMachine, precondition
from sqlalchemy import Engine

from sa_durable import DurableError
from sa_durable.errors import Signal
from sa_durable.services.checkpoints import AlreadySaved
from sa_durable.testing.clock import Clock
from sa_durable.values import Claim, TaskError
from tests.services.clients import Client
from tests.stateful.model import Model
from tests.stateful.tasks import Refused, Task

LEASE, FOREVER = timedelta(seconds=60), 10_000
FAILURE = TaskError("ValueError", "no")

has_tasks = precondition(lambda self: self.model.tasks)
has_claims = precondition(lambda self: self.claims)


class Trying(RuleBasedStateMachine):
    """`client`, `engine` and `clock` are given by the test."""

    client: ClassVar[Client]
    engine: ClassVar[Engine]
    clock: ClassVar[Clock]

    # How a verb is tried

    def run(self, service: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """A service of the library's own, in the client's session."""
        session = self.client.session
        if hasattr(session, "run_sync"):
            return session.run_sync(service, *args, **options)
        return service(session, *args, **options)

    def verb(self, real: Callable[[], Any], ideal: Callable[[Model, Any], Any], *, keep: bool = True) -> Any:
        """Both come to the same, in a transaction that is kept, or not. Returns what the service returned."""
        got, refused = None, None
        try:
            got = real()
        except (DurableError, Signal, AlreadySaved) as error:
            refused = type(error).__name__
            keep = keep and not isinstance(error, Signal | AlreadySaved)
        trial = deepcopy(self.model)
        try:
            wanted = ideal(trial, got)
            assert refused is None, f"{refused}, and the model says {wanted!r}"
        except Refused as error:
            assert refused == str(error), f"{refused or got!r}, and the model says {error}"
            trial = self.model
        (self.client.session.commit if keep else self.client.session.rollback)()
        if keep:
            self.model = trial
        return got if keep else None

    def task(self, number: int) -> Task:
        return list(self.model.tasks.values())[number % len(self.model.tasks)]

    def a_claim(self, number: int) -> Claim:
        """One that stands, mostly; or one whose task runs for somebody else; or any."""
        held = [claim for claim in self.claims if self.model.held(claim.task_id, claim.token)]
        running = [task.id for task in self.model.tasks.values() if task.state == "running"]
        overtaken = [claim for claim in self.claims if claim.task_id in running and claim not in held]
        some = (held, held, overtaken, self.claims)[number % 4] or self.claims
        return some[-1 - number // 4 % len(some)]
