"""Match the steps of a run with the checkpoints of its task. Pure bookkeeping, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import NamedTuple, TypeAlias

from ...errors import DeclarationError
from ...values import Json

STEP_NAME_LENGTH = 255
"""Longest name of a step, in characters."""

RESERVED_PREFIXES = ("~", "$")
"""First characters of the names that the library gives to its own steps."""


class Replayed(NamedTuple):
    """A step that has a checkpoint: it isn't run again."""

    key: str
    """Name of the checkpoint."""

    value: Json
    """The saved value."""


class NotYetRun(NamedTuple):
    """A step without a checkpoint: it is run now."""

    key: str
    """Name under which the step's checkpoint is to be saved."""


StepState: TypeAlias = Replayed | NotYetRun


class Replay:
    """Find the checkpoints of the steps that a run asks for, in the order in which it asks.

    A name that is asked for again is another step: its second checkpoint has the key `name#2`.

    >>> replay = Replay({"charge": 40})
    >>> replay.next("charge")
    Replayed(key='charge', value=40)
    >>> replay.next("charge")
    NotYetRun(key='charge#2')

    Thread safety: threads of one handler may ask at the same time. If they use the same name, the number that
    each of them gets depends on the order in which they arrive here.

    Args:
        checkpoints: The saved values of the task's steps, by key.
    """

    __slots__ = ("_checkpoints", "_counts", "_lock")

    def __init__(self, checkpoints: Mapping[str, Json]) -> None:
        self._checkpoints = checkpoints
        self._counts: dict[str, int] = {}
        self._lock = Lock()

    def next(self, name: str) -> StepState:
        """Return the next step of this name: replayed if it has a checkpoint."""
        with self._lock:
            number = self._counts[name] = self._counts.get(name, 0) + 1
        key = name if number == 1 else f"{name}#{number}"
        checkpoints = self._checkpoints
        return Replayed(key, checkpoints[key]) if key in checkpoints else NotYetRun(key)


def library_step_name(prefix: str, name: str) -> str:
    """Return the name of a step of the library's own, such as the wait for event `name`.

    Doubles each `#` of `name`, so that no name can equal the key of a repeated step.

    >>> library_step_name("$await:", "paid#2")
    '$await:paid##2'
    """
    return prefix + name.replace("#", "##")


def check_step_name(name: str) -> str:
    """Return `name` if a step of the application's can have it.

    Raises:
        DeclarationError: The name is empty or too long, has unprintable characters or a `#`, or starts with a
            reserved `~` or `$`.
    """
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= STEP_NAME_LENGTH
        or not name.isprintable()
        or "#" in name
        or name.startswith(RESERVED_PREFIXES)
    ):
        raise DeclarationError(
            f"step name {name!r}: must be 1 to {STEP_NAME_LENGTH} printable characters, without '#' (it "
            "numbers repeated steps) and not starting with '~' or '$' (reserved for the library)"
        )
    return name
