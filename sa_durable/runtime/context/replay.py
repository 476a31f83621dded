"""Which step is this, and has it already happened? Pure bookkeeping, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

from ...errors import DeclarationError
from ...values import Json

STEP_NAME_LENGTH = 255
RESERVED_PREFIXES = ("~", "$")


@dataclass(frozen=True, slots=True)
class Replayed:
    """The step has happened; this is what it left."""

    key: str
    value: Json


@dataclass(frozen=True, slots=True)
class NotYetRun:
    """The step has not happened yet, or left nothing."""

    key: str


Slot: TypeAlias = Replayed | NotYetRun


class Replay:
    """Match the steps that a run asks for with those that are saved.

    >>> journal = Journal({"charge": 40})
    >>> journal.next("charge")
    Recorded(key='charge', value=40)
    >>> journal.next("charge")  # the same name again is the second step
    Missing(key='charge#2')

    Threads of one handler may ask at the same time; which of two equal names is the first is then theirs to say.
    """

    __slots__ = ("_lock", "_saved", "_seen")

    def __init__(self, saved: Mapping[str, Json]) -> None:
        self._saved = saved
        self._seen: Counter[str] = Counter()
        self._lock = Lock()

    def next(self, name: str) -> Slot:
        with self._lock:
            self._seen[name] += 1
            nth = self._seen[name]
        key = name if nth == 1 else f"{name}#{nth}"
        return Replayed(key, self._saved[key]) if key in self._saved else NotYetRun(key)


def library_step_name(kind: str, name: str) -> str:
    """The library's own step of a kind, about `name`: whose `#` are doubled, so that none looks like a repeated one.

    >>> about("$await:", "paid#2")
    '$await:paid##2'
    """
    return kind + name.replace("#", "##")


def check_step_name(name: str) -> str:
    """`name` itself, if a step can be called so: 1 to 255 printable characters, no `#`, no reserved `~` or `$` at
    its start. Raises DeclarationError."""
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= STEP_NAME_LENGTH
        or not name.isprintable()
        or "#" in name
        or name.startswith(RESERVED_PREFIXES)
    ):
        raise DeclarationError(
            f"step name {name!r}: 1 to {STEP_NAME_LENGTH} printable characters, without '#' (it numbers repeated "
            "steps), and not starting with '~' or '$' (the library's own)"
        )
    return name
