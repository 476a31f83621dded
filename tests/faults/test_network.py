"""C5 and C8: what befalls connections on their way."""

from __future__ import annotations

from random import Random
from statistics import median

from tests.databases import throwaway, url_of
from tests.faults.conftest import seconds
from tests.faults.load import Plan, under_load
from tests.proxy import Link, Proxy

POLLING, AGAIN = "notifications lost", "notifications restored"


class Unreliable:
    """Loses replies, of COMMIT most of all; what was sent has reached the server, or hasn't."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.lost = self.never = 0

    def __call__(self, link: Link, data: bytes) -> bytes:
        if self._rng.random() > (0.1 if b"COMMIT" in data else 0.003):
            return data
        if self._rng.random() < 0.5:
            self.lost += 1
            link.reply_lost = True
            return data
        self.never += 1
        link.close()
        return b""


def test_ambiguous_commits_lose_and_repeat_nothing(steady, figures):
    lasts = seconds(20)
    plan = Plan(tasks=int(15 * lasts), seconds=lasts)
    counted = figures("C8 lost replies to COMMIT")
    unreliable = Unreliable(Random(counted.seed))
    with throwaway(steady.url) as engine, Proxy(url_of(engine), unreliable) as proxy:
        through = proxy.url.render_as_string(hide_password=False)
        with under_load(steady, url_of(engine), plan, counted, through=through) as load:
            while load.spawning:
                load.moment(0.1, 0.2)
            proxy.sending = lambda _link, data: data
            found = load.settle()
            found.faults = unreliable.lost + unreliable.never
            found.notes["replies lost, never arrived"] = [unreliable.lost, unreliable.never]
    assert found.findings == []
    assert found.faults >= 50


def test_while_the_listeners_connection_is_half_open_tasks_are_polled(steady, figures):
    """With the worker's own intervals: it asks for an echo every 20 s and misses it after 5."""
    lasts = seconds(40)
    plan = Plan(tasks=int(2 * lasts), seconds=lasts, workers=1, spawners=1, job={"lease": 5.0})
    with throwaway(steady.url) as engine, Proxy(url_of(engine)) as proxy:
        plan.job["listen_url"] = proxy.url.render_as_string(hide_password=False)
        with under_load(steady, url_of(engine), plan, figures("C5 half-open listener")) as load:
            [worker] = load.crew.hands
            for _ in load.for_a(0.1):
                load.moment(0.1, 0.1)
            asked = "SELECT count(*) FROM durable_queues WHERE notify_until > now()"
            assert load.until(lambda: load.count(asked), 30)
            said = {
                what: worker.log.count(what) for what in (POLLING, AGAIN)
            }  # a machine that stands still misses echoes
            moments = [load.now()]
            load.figures.faults += 1
            proxy.freeze()
            assert load.until(lambda: worker.log.count(POLLING) > said[POLLING], 60)
            moments.append(load.now())
            proxy.thaw()
            assert load.until(lambda: worker.log.count(AGAIN) > said[AGAIN], 60)
            moments.append(load.now())
            found = load.settle()
            half_open = load.pick_up(*moments[:2])
            found.notes["half-open for, and listening again after (s)"] = [
                round((moments[at + 1] - moments[at]).total_seconds(), 1) for at in (0, 1)
            ]
            found.notes["longest pick-up meanwhile (ms)"] = round(1000 * half_open[-1])
    assert found.findings == []
    assert median(half_open) <= load.crew.job.poll_interval
