"""C12: the services against a model in Python, through the sync and the async client.

Every day the same 40 lives; `HYPOTHESIS_PROFILE=soak` (for `make faults`) draws others, longer ones, and prints how to
draw them again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine, select, text

from sa_durable.services import cancellation, events, retries
from sa_durable.statements import runs as run_stmt
from sa_durable.testing.clock import Clock, clock
from tests.databases import throwaway, url_of
from tests.services.clients import CLIENTS, Client, open_client
from tests.shop import Base
from tests.stateful.machine import ServiceMachine

Given = tuple[Client, Engine, Clock]
SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
EVERYDAY = settings(
    max_examples=int(os.environ.get("SA_DURABLE_LIVES", "2000" if SOAK else "25")),
    stateful_step_count=100 if SOAK else 40,
    derandomize=not SOAK,
    database=None,
    deadline=None,
    print_blob=True,
    phases=[Phase.generate, *([Phase.shrink] if SOAK else [])],  # shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(7200 if SOAK else 600)


@pytest.fixture(params=CLIENTS if SOAK else CLIENTS[::2])
def client(request, server_url) -> Iterator[Given]:
    with given(request.param, server_url) as client:
        yield client


@contextmanager
def given(kind: str, server_url: str) -> Iterator[Given]:
    with (
        throwaway(server_url, Base.metadata) as engine,
        open_client(kind, url_of(engine)) as client,
        clock(engine, client.engine) as time,
    ):
        yield client, engine, time


def live(client: Given, how: settings) -> None:
    class Machine(ServiceMachine):
        pass

    Machine.client, Machine.engine, Machine.clock = client
    run_state_machine_as_test(Machine, settings=how)


def test_the_services_do_what_the_model_says(client):
    live(client, EVERYDAY)


# The machine can fail: each of these mechanisms is missed within its everyday time.


def _token_check_off(monkeypatch) -> None:
    def lock_running(table, claims, *columns, wait=False):
        row = table.alias("row")
        found = select(row.c.id, *(row.c[name] for name in columns)).where(row.c.id == claims.c.id)
        return found.where(text("row.state = 'running'")).lateral("held_row")

    monkeypatch.setattr(run_stmt, "lock_held", lock_running)
    for name in ("complete_many", "fail_many"):
        monkeypatch.setattr(run_stmt, name, getattr(run_stmt, name).__wrapped__)


def _cascade_off(monkeypatch) -> None:
    monkeypatch.setattr(cancellation, "_children", lambda *_: {})


def _marks_off(monkeypatch) -> None:
    monkeypatch.setattr(events, "_mark_waits", lambda *_: 0)


def _keys_taken_back_unasked(monkeypatch) -> None:
    monkeypatch.setattr(retries, "_is_taken", lambda *_, **__: False)


BROKEN = [_token_check_off, _cascade_off, _marks_off, _keys_taken_back_unasked]


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda broken: broken.__name__.strip("_"))
def test_a_broken_service_is_found_out(server_url, monkeypatch, break_it):
    break_it(monkeypatch)
    with given("psycopg", server_url) as client, pytest.raises(AssertionError):
        live(client, settings(EVERYDAY, phases=[Phase.generate]))
