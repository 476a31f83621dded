"""Workers inside an application's own event loop, and in a plain script."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest

from sa_durable.runtime import Worker
from tests.databases import url_of
from tests.runtime import app
from tests.runtime.app import WorkTask
from tests.runtime.conftest import ROOT
from tests.waiting import wait_until

QUICK = {"poll_interval": timedelta(milliseconds=20), "shutdown_timeout": timedelta(seconds=60)}


@asynccontextmanager
async def lifespan(engine) -> AsyncIterator[Worker]:
    """As FastAPI, Starlette and Litestar take one."""
    async with Worker(engine, [WorkTask], **QUICK) as worker:
        yield worker


async def fact(check, *args) -> None:
    await asyncio.to_thread(wait_until, lambda: check(*args))


def test_lifespan_end_lets_handlers_finish_and_leaves_signals_alone(engine, shop):
    caught = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        others = asyncio.create_task(asyncio.sleep(600))
        async with lifespan(engine):
            assert signal.getsignal(signal.SIGTERM) is caught
            task = await asyncio.to_thread(shop.spawn, app.waits.call(label="slow"))
            await fact(lambda: app.calls["slow"])
            asyncio.get_running_loop().call_later(0.1, app.gate.set)
        assert (await asyncio.to_thread(shop.task, task)).result == "slow"
        assert not others.done()
        others.cancel()

    asyncio.run(main())


def test_an_error_in_the_application_stops_the_worker_and_comes_out(engine, shop):
    async def main() -> Worker:
        with pytest.raises(ZeroDivisionError):
            async with lifespan(engine) as worker:
                await asyncio.to_thread(
                    shop.ended, await asyncio.to_thread(shop.spawn, app.double.call(number=2))
                )
                1 / 0  # noqa: B018 - the application's error
        return worker

    assert asyncio.run(main()).closed.is_set()


def test_a_cancelled_run_gives_back_what_it_cannot_finish(engine, shop):
    async def main() -> Worker:
        worker = Worker(engine, [WorkTask], **{**QUICK, "shutdown_timeout": timedelta(seconds=0.1)})
        running = asyncio.create_task(worker.run_async())
        task = await asyncio.to_thread(shop.spawn, app.waits.call(label="slow"))
        await fact(lambda: app.calls["slow"])
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        assert (await asyncio.to_thread(shop.task, task)).state == "pending"
        return worker

    assert asyncio.run(main()).closed.is_set()
    app.gate.set()


SCRIPT = """
import signal, sys
from sa_durable import Worker
from tests.runtime.app import WorkTask

before = signal.getsignal(signal.SIGTERM)
Worker(sys.argv[1], [WorkTask]).run()
assert signal.getsignal(signal.SIGTERM) is before
print("ended")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_script_runs_until_it_is_stopped(engine, shop, number):
    task = shop.spawn(app.triple.call(number=2))
    script = [sys.executable, "-c", SCRIPT, url_of(engine)]
    with subprocess.Popen(script, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert shop.ended(task).result == 6
            process.send_signal(number)
            assert process.communicate(timeout=60)[0] == "ended\n" and process.returncode == 0
        finally:
            process.kill()
