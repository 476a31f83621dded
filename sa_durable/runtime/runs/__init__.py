"""Runs that this worker has claimed, until their outcome is stored.

- `active`: A claimed run, and the table of all claimed runs.
- `capacity`: Decide how many tasks to claim.
- `completer`: Store the outcomes of runs, in batches.
- `errors`: Turn an exception into the error that is stored.
- `lease`: Extend leases, and retry writes for as long as the lease lasts.
- `registry`: The worker's queues and their handlers.
- `stack`: Format the current stack of a running handler.

Invariant: a run is in `ActiveRuns` from its claim until its outcome is stored, its claim is released, or its
claim is known to be lost. The heartbeat extends the leases of these runs only.
"""
