"""Start handlers, limit their time, and turn how they end into an outcome to store.

- `dispatcher`: Queue of claimed runs that wait for a free handler slot.
- `executor`: Run handlers on the event loop and in threads.
- `run_hooks`: Run the application's hooks around a handler.
- `timeouts`: Fail runs that exceed their handler's timeout.

Invariant: whatever a handler or a hook raises, `SystemExit` included, ends its run only. The slot is free
afterwards.
"""
