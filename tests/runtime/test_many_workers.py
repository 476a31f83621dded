"""B4: many workers on one queue, released at once."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from sa_durable.runtime import Worker
from tests.databases import deadlocks
from tests.runtime import app
from tests.runtime.app import WorkTask
from tests.waiting import wait_until


def test_fifty_tasks_and_ten_workers_run_each_task_once(engine, shop):
    tasks = [shop.spawn(app.quick.call(label=f"{n}")) for n in range(50)]
    barrier, before = threading.Barrier(10), deadlocks(engine)
    workers = [
        Worker(engine, [WorkTask], concurrency=2, prefetch=0, poll_interval=timedelta(milliseconds=20))
        for _ in range(10)
    ]

    def run(worker: Worker) -> None:
        barrier.wait()
        worker.run()

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        shop.ended(*tasks, timeout=60)
    finally:
        for worker in workers:
            wait_until(lambda: worker.parts.loop.attached)  # noqa: B023 - called before the loop goes on
            worker.request_stop()
        for thread in threads:
            thread.join(60)
    assert app.calls == Counter({f"{n}": 1 for n in range(50)})
    with Session(engine) as session:
        ends = Counter(map(tuple, session.execute(select(WorkTask.state, WorkTask.attempt, WorkTask.token))))
    assert ends == {("completed", 1, 1): 50} and deadlocks(engine) == before
