"""Every exception of the package can be pickled and copied, with its message and attributes."""

from __future__ import annotations

import copy
import pickle
from uuid import UUID

import pytest

from sa_durable import errors
from sa_durable.errors import DurableError, Fail, Signal
from sa_durable.values import TaskError, TaskState

ID = UUID(int=7)
ARGUMENTS = {
    "TaskNotFound": ("billing", ID),
    "DuplicateTask": ("billing", "k", ID, "pending"),
    "IdempotencyConflict": ("billing", "k", ID, "called 'x', not 'y'"),
    "KeyTaken": ("billing", "k", ID, "running"),
    "InvalidState": ("billing", ID, "running", "only failed and cancelled tasks can be retried"),
    "RetryTransaction": ("deadlock detected", "40P01"),
    "TaskFailed": (ID, TaskError("ValueError", "no", fields={"code": "51"})),
    "TaskCancelled": (ID,),
}
NAMED = {"TimedOut": {"state": TaskState.SLEEPING}, "Fail": {"code": "51"}}
CLASSES = [
    found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, BaseException)
]


def test_missing_extra_keeps_the_attributes_of_an_import_error():
    error = errors.MissingExtra("greenlet is missing", name="greenlet")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (again.name, again.msg, str(again)) == (
            "greenlet",
            "greenlet is missing",
            "greenlet is missing",
        )


class Declined(Fail):
    """An application's own, with an `__init__` of its own."""

    def __init__(self, code: str, *, amount: int) -> None:
        super().__init__(f"declined: {code}", code=code)
        self.amount = amount


ERRORS = [
    *(cls(*ARGUMENTS.get(cls.__name__, ("why",)), **NAMED.get(cls.__name__, {})) for cls in CLASSES),
    Declined("51", amount=7),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_an_error_round_trips_with_its_attributes(error, duplicate):
    other = duplicate(error)
    assert (type(other), str(other), other.args) == (type(error), str(error), error.args)
    assert vars(other) == vars(error)


def test_errors_and_signals_are_apart():
    assert not [cls for cls in CLASSES if issubclass(cls, DurableError) == issubclass(cls, Signal)]
    assert not issubclass(Signal, Exception)
