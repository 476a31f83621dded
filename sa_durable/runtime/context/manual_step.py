"""Steps that don't fit a callable: begun here, completed further down."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from ...codec import Coder
from ...errors import StepMisuse
from ...values import Json
from ..runs.active import ActiveRun
from .replay import Replayed, Slot
from .steps import decode, encode
from .transaction_record import require_no_transaction

R = TypeVar("R")


class Step(Generic[R]):
    """What `ctx.begin_step` returns: whether the step has happened, and its value once it has."""

    __slots__ = ("_coder", "_run", "_stored", "done", "key")

    def __init__(self, run: ActiveRun, slot: Slot, coder: Coder) -> None:
        self._run, self._coder = run, coder
        self.key = slot.key
        """The name of its checkpoint: the step's own, numbered if it is repeated."""
        self.done = isinstance(slot, Replayed)
        """Whether it has happened, in this execution or an earlier one."""
        self._stored: Json = slot.value if isinstance(slot, Replayed) else None

    def __repr__(self) -> str:
        return f"<step {self.key!r}, {'done' if self.done else 'begun'}>"

    @property
    def value(self) -> R:
        """What it was completed with, decoded from what is stored. Raises StepMisuse if it isn't done."""
        if not self.done:
            raise StepMisuse(f"step {self.key!r} has no value before ctx.complete_step(step, value)")
        value: R = decode(self._coder, self._stored, self.key)
        return value

    def encode(self, run: ActiveRun, value: Any) -> str:
        """For complete_step: JSON text of the value that `run` completes it with. Raises StepMisuse and InvalidResult."""
        require_no_transaction(run)
        if run is not self._run:
            raise StepMisuse(
                f"step {self.key!r} was begun in another execution: each time the handler runs it begins its own steps"
            )
        if self.done:
            raise StepMisuse(f"step {self.key!r} is done: ask `if not step.done` before it is completed")
        return encode(self._coder, value, self.key)

    def complete(self, stored: Json) -> R:
        """For complete_step: `stored` is what its checkpoint says now. To complete a step, `ctx.complete_step(step, value)`."""
        self._stored, self.done = stored, True
        return self.value
