"""Workers on the ledger, each in a process of its own that is forked from a warm one: 20 times quicker than a new one.

`python -m tests.runtime.forked_worker URL ASYNC_DRIVER [CONCURRENCY]` starts a worker for each line that it reads, and prints how it
ended: -9, or 0.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from sa_durable.runtime import Worker
from tests.runtime.audit_app import LedgerSession, LedgerTask, deadly, deadly_flush


def serve(url: str, async_driver: str, concurrency: str = "1") -> None:
    engine = create_engine(url)
    async_engine = create_async_engine(make_url(url).set(drivername=async_driver))
    deadly(engine)
    deadly(async_engine.sync_engine)
    deadly_flush()
    Worker(
        engine,
        [LedgerTask],
        concurrency=int(concurrency),
        prefetch=int(concurrency) - 1,  # if 1: what dies with the process is the one task that is meant to
        poll_interval=timedelta(milliseconds=20),
        session_factory=sessionmaker(engine, class_=LedgerSession),
        async_session_factory=async_sessionmaker(
            async_engine, class_=AsyncSession, sync_session_class=LedgerSession
        ),
    ).run()


def main() -> None:
    LedgerTask.registry.configure()
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            serve(*sys.argv[1:])
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
