"""When a claimer looks again and what it says to those who spawn."""

from __future__ import annotations

from itertools import count

from sa_durable.runtime.loops.poll_policy import (
    AGAIN,
    BURST,
    FULL,
    MANY,
    QUIET,
    RENEW,
    STREAM,
    WINDOW,
    Idling,
    Next,
    Wish,
)

POLL = 0.25


class Claimer:
    """Looks when it was told to, unless a test says after how many seconds."""

    def __init__(self) -> None:
        self.idling, self.now, self.heard, self.connection = Idling(POLL), 100.0, 0, 1
        self.pause = 0.0

    def look(self, *, found: int = 0, room: bool = True, after: float | None = None) -> Next:
        self.now += self.pause if after is None else after
        decided = self.idling.after_claims(
            self.now, found=found, room=room, connection=self.connection, heard=self.heard
        )
        self.pause = decided.pause
        return decided

    def told(self, *, after: float, found: int = 1, room: bool = True) -> Next:
        """Look because of a notification."""
        self.heard += 1
        return self.look(found=found, room=room, after=after)

    def until_idle(self) -> list[float]:
        """The pauses until it asks to be notified."""
        pauses = []
        while (decided := self.look()).wish is not Wish.NOTIFY:
            pauses.append(decided.pause)
        assert decided.pause == 0  # it looks once more, at once
        return pauses


def test_after_the_last_work_the_pauses_grow_and_then_it_asks_and_polls():
    claimer = Claimer()
    assert claimer.until_idle() == list(QUIET)
    assert [claimer.look() for _ in range(3)] == [Next(POLL)] * 3


def test_work_begins_the_pauses_anew():
    claimer = Claimer()
    for _ in QUIET:
        claimer.look()
    claimer.look(found=1)
    assert claimer.until_idle() == list(QUIET[1:])


def test_while_each_look_finds_many_it_looks_less_often():
    claimer = Claimer()
    assert [claimer.look(found=MANY - 1).pause for _ in range(3)] == [QUIET[0]] * 3
    assert [claimer.look(found=MANY).pause for _ in range(4)] == [QUIET[0], STREAM, STREAM, STREAM]
    assert claimer.look().pause == QUIET[1]


def test_without_a_connection_it_polls_and_with_a_new_one_it_asks_again():
    claimer = Claimer()
    claimer.until_idle()
    claimer.connection = 0
    assert [claimer.look(found=1), claimer.look()] == [Next(POLL)] * 2
    claimer.connection = 2
    claimer.until_idle()


def test_it_asks_again_from_time_to_time_and_when_it_missed_something():
    claimer = Claimer()
    claimer.until_idle()
    assert claimer.look(after=RENEW).wish is Wish.NOTIFY
    assert claimer.look(found=1).wish is Wish.NOTHING_NEW  # it has just asked
    assert claimer.look(found=1, after=AGAIN).wish is Wish.NOTIFY
    assert claimer.told(after=AGAIN).wish is Wish.NOTHING_NEW


def test_single_notifications_are_fine_and_a_burst_of_them_is_called_off():
    claimer = Claimer()
    claimer.until_idle()
    for _ in range(5 * BURST):
        assert claimer.told(after=2 * WINDOW / BURST).wish is Wish.NOTHING_NEW
    claimer.heard += 3 * BURST  # of sleepers or events: nobody looked because of them
    assert claimer.look(after=POLL).wish is Wish.DONT
    claimer.until_idle()
    called_off = next(n for n in count(1) if claimer.told(after=WINDOW / BURST / 10).wish is Wish.DONT)
    assert BURST / 2 <= called_off <= 2 * BURST
    assert claimer.until_idle()


def test_without_room_it_calls_them_off_after_a_while_and_asks_when_it_is_idle_again():
    claimer = Claimer()
    claimer.until_idle()
    assert claimer.told(room=False, after=0.01) == Next(FULL)
    assert claimer.look(room=False, after=2 * FULL) == Next(POLL, Wish.DONT)
    assert claimer.look(room=False) == Next(POLL)
    assert claimer.until_idle() == list(QUIET)


def test_without_room_for_a_moment_nothing_changes():
    claimer = Claimer()
    claimer.until_idle()
    for _ in range(5):
        assert claimer.told(room=False, after=0.01) == Next(FULL)
        assert claimer.told(after=FULL / 2) == Next(POLL)


def test_a_wish_that_did_not_arrive_is_said_again_later():
    claimer = Claimer()
    claimer.until_idle()
    claimer.idling.not_asked(claimer.now)
    assert claimer.look() == Next(POLL)
    assert claimer.look(after=AGAIN).wish is Wish.NOTIFY
