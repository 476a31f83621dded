"""Threads of the worker, how they are woken, and how they survive an outage of the database.

- `periodic`: A thread that repeats one function, and waits longer after each failure.
- `wakeup`: An event that wakes one thread.
- `notification_thread`: A thread that receives PostgreSQL's notifications on a connection of its own.
- `pool`: Threads for blocking calls of the event loop, and for sync handlers.
- `event_loop`: The worker's event loop, as its threads see it.

Invariant: every thread is a daemon. None of them can keep the process from exiting.
"""
