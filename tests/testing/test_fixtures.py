"""The fixtures in the documentation of sa_durable.testing work."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import textwrap

import sa_durable.testing
from tests.testing.conftest import ROOT

IMPORTS = """
import pytest
from sqlalchemy import create_engine, delete
from app import Base
from sa_durable.embedded import postgres
from sa_durable.testing import clock
"""
APPLICATION = """
from datetime import timedelta
from sqlalchemy.orm import DeclarativeBase
from sa_durable import DurableTask

class Base(DeclarativeBase): ...

class ShippingTask(DurableTask, Base):
    __queue__ = "shipping"

@ShippingTask.handler()
def ship(ctx, order_id: int) -> str:
    ctx.sleep_for(timedelta(days=7))
    ctx.sleep_for(timedelta(days=7))
    return f"shipped {order_id}"
"""
TEST = """
import pytest
from sqlalchemy.orm import Session
from app import ShippingTask, ship
from sa_durable import Durable
from sa_durable.testing import assert_spawned, run_until_idle

@pytest.mark.parametrize("order_id", [7, 8])
def test_the_example_ships_after_two_weeks(engine, time, order_id):
    with Session(engine) as session, session.begin():
        Durable(session).spawn(ship.call(order_id=order_id))
    while due := run_until_idle(engine, ShippingTask).next_due:
        time.move_to(due)
    task = assert_spawned(engine, ship)
    assert task.result == f"shipped {order_id}"
    assert (task.finished_at - task.created_at).days == 14
"""


def test_the_fixtures_of_the_documentation_work(tmp_path, server_url):
    [block] = re.findall(r"As pytest fixtures::\n\n(.*?)\n\S", inspect.getdoc(sa_durable.testing), re.DOTALL)
    (tmp_path / "conftest.py").write_text(IMPORTS + textwrap.dedent(block))
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "test_app.py").write_text(TEST)
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        run, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
