"""One step of a run: whether it has happened, and its value."""

from __future__ import annotations

from typing import Generic, TypeVar

from ...codec import Coder
from ...errors import StepMisuse
from ...values import Json
from ..runs.active import ActiveRun
from .replay import Replayed, StepState
from .step_values import decode, encode
from .transaction_scope import require_no_transaction

R = TypeVar("R")


class Step(Generic[R]):
    """A step that `ctx.begin_step` began: whether it has happened, and its value once it has.

    `ctx.complete_step(step, value)` completes it. Don't create steps yourself.
    """

    __slots__ = ("_coder", "_run", "_saved", "done", "key")

    def __init__(self, run: ActiveRun, state: StepState, coder: Coder) -> None:
        self._run, self._coder = run, coder
        self.key = state.key
        """The name of its checkpoint: the step's own name, with a number if the name is repeated."""
        self.done = isinstance(state, Replayed)
        """Whether the step has happened, in this execution of the handler or an earlier one."""
        self._saved: Json = state.value if isinstance(state, Replayed) else None

    def __repr__(self) -> str:
        return f"<step {self.key!r}, {'done' if self.done else 'not completed'}>"

    @property
    def value(self) -> R:
        """The value that the step was completed with, decoded from its checkpoint.

        Raises:
            StepMisuse: The step isn't done.
            InvalidResult: The saved value doesn't match the step's type.
        """
        if not self.done:
            raise StepMisuse(f"step {self.key!r}: has no value before ctx.complete_step(step, value)")
        value: R = decode(self._coder, self._saved, self.key)
        return value

    def encode(self, run: ActiveRun, value: R) -> str:
        """Return the JSON text to save for `value`. For `ctx.complete_step`.

        Args:
            run: The run that completes the step.
            value: The value of the step.

        Raises:
            StepMisuse: The step is done already, or another run began it. Nothing was written.
            DeclarationError: Called inside the function of a `ctx.transaction`.
            InvalidResult: The value can't be stored as JSON.
        """
        require_no_transaction(run)
        if run is not self._run:
            raise StepMisuse(
                f"step {self.key!r}: belongs to another execution of the handler. Nothing was written. "
                "Call ctx.begin_step each time the handler runs"
            )
        if self.done:
            raise StepMisuse(
                f"step {self.key!r}: is done already. Nothing was written. "
                "Check `if not step.done` before completing it"
            )
        return encode(self._coder, value, self.key)

    def complete(self, saved: Json) -> R:
        """Mark the step as done and return its value. For `ctx.complete_step`, once the value is saved.

        Args:
            saved: The value of the checkpoint.

        Raises:
            InvalidResult: The saved value doesn't match the step's type.
        """
        self._saved, self.done = saved, True
        return self.value
