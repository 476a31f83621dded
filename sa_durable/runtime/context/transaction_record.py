"""Records of the application's transactions.

A record is written with the application's rows, so it proves that the transaction committed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy.orm import Session

from ...services import checkpoints, claims, runs
from ...services.claims import ClaimStatus
from ...values import Json
from ..runs.active import ActiveRun
from .step import Step

T_contra = TypeVar("T_contra", contravariant=True)
V_co = TypeVar("V_co", covariant=True)


class Record(Protocol[T_contra, V_co]):
    """The record of one transaction: it exists if and only if the transaction committed."""

    def record(self, session: Session, value: T_contra) -> V_co:
        """Write the record, in the application's transaction.

        Args:
            session: The session that the application's function was given.
            value: What the function returned.

        Raises:
            AlreadySaved: An earlier attempt has written the record and committed.
            Cancelled: The task was cancelled.
            LeaseLost: Another worker may run the task.
        """

    def find(self, session: Session) -> V_co | None:
        """Return the record of an earlier attempt; None if that attempt didn't commit.

        Waits for an attempt that may still commit, so the answer is final.
        """

    def finishing_block(self) -> AbstractContextManager[None]:
        """Return the context manager to enter around `record` and the COMMIT."""


class RecordedStep(NamedTuple):
    """The checkpoint of a step, whose value may be None."""

    value: Json
    """The stored value."""


class StepRecord:
    """Record a transaction as a step of its run: by a checkpoint.

    Args:
        run: The run that executes the transaction.
        step: The step, which isn't done.
    """

    def __init__(self, run: ActiveRun, step: Step[Any]) -> None:
        self._run, self._step = run, step

    def record(self, session: Session, value: Any) -> RecordedStep:
        model, claim = self._run.model, self._run.claim
        text = self._step.encode(self._run, value)
        return RecordedStep(checkpoints.save_first(session, model, claim, self._step.key, text))

    def find(self, session: Session) -> RecordedStep | None:
        model, claim = self._run.model, self._run.claim
        claims.lock(session, model, claim)
        saved = checkpoints.find(session, model, claim.task_id, self._step.key)
        return None if saved is None else RecordedStep(saved.value)

    def finishing_block(self) -> AbstractContextManager[None]:
        return nullcontext()


class TaskRecord:
    """Record a transaction by completing the run's task.

    Args:
        run: The run that executes the transaction.
        encode: Makes JSON text of the handler's result.
    """

    def __init__(self, run: ActiveRun, encode: Callable[[Any], str]) -> None:
        self._run, self._encode = run, encode

    def record(self, session: Session, value: Any) -> bool:
        runs.complete_first(session, self._run.model, self._run.claim, self._encode(value))
        return True

    def find(self, session: Session) -> bool | None:
        status = claims.lock(session, self._run.model, self._run.claim)
        return True if status is ClaimStatus.STORED else None

    def finishing_block(self) -> AbstractContextManager[None]:
        return self._run.finishing_block()
