"""Connections of the worker, what they cache, and what a database error means.

- `engines`: Make a psycopg engine from the application's URL or engine.
- `database`: Sessions for one role of the worker, on a connection pool of its own.
- `plan_cache`: Discard prepared plans that no longer match the size of the tables.
- `fast_checkpoint`: Save a checkpoint through libpq, on a cached connection.
- `errors`: Classify database errors, and describe them for the log.
- `retrying`: Retry the library's own transactions after errors that are transient.
- `schema_check`: Compare the database with the schema that this version needs.

Invariant: the worker's own statements run on these connections, in autocommit or at READ COMMITTED. They
never use a connection of the application's pool, so handlers that hold all of its connections cannot stop a
heartbeat.
"""
