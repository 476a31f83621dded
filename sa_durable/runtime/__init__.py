"""The worker and the contexts that it gives to handlers. Only this package uses asyncio and threads.

Threads of a worker. Every thread is a daemon, and its name starts with `sa_durable`.

| Thread      | Number         | What it does and owns                                            |
|-------------|----------------|------------------------------------------------------------------|
| event loop  | 1              | Runs async handlers and dispatches claimed runs. Ends runs whose |
|             |                | lease is over. The application's own thread, not a daemon.       |
| handler     | `concurrency`  | Runs sync handlers. A thread that ends a run takes the next one. |
| context     | 4              | Runs the library's statements for async handlers.                |
| transaction | `concurrency`  | Runs sync functions that async handlers pass to a transaction.   |
| claimer     | 1              | Claims tasks. Owns `PollPolicy` and `ClaimWatermark`, reserves   |
|             |                | capacity, enables and disables notifications.                    |
| completer   | 1              | Stores outcomes in batches. Owns the batch that is being written.|
| heartbeat   | 1              | Extends leases, ends runs whose claim was lost or cancelled.     |
| timeouts    | 1              | Fails runs that take longer than their handler's `timeout`.      |
| waker       | 1              | Promotes due sleepers, resolves events, wakes waiting tasks.     |
| sweeper     | 1              | Expires leases and enforces deadlines, of all workers.           |
| cleaner     | 1              | Deletes ended tasks of queues that have a retention.             |
| listener    | 1, if `notify` | Owns the LISTEN connection and turns notifications into wake-ups.|
| shutdown    | 1              | Stops the other threads in order, also if the event loop hangs.  |

Locks. No code takes a second one of these locks while it holds one.

| Lock                     | What it guards                                                             |
|--------------------------|----------------------------------------------------------------------------|
| `Dispatcher._lock`       | Runs that wait for a handler slot; start and release in `Capacity`.        |
| `ActiveRuns._lock`       | The table of runs that this worker holds.                                  |
| `Database._lock`         | Cached sessions and the number of threads that wait for the pool.          |
| `database._initializing` | The first connection of a dialect (one lock for the whole process).        |
| `DaemonThreadPool._lock` | The numbers of started and of free threads.                                |
| `Replay._lock`           | The numbers of repeated step names in one run.                             |
| `results._lock`          | The `EndListener` of each connection pool, and its callbacks (`wait_for`). |

No lock guards the following, on purpose:

- `ActiveRun`: its fields are single assignments. The first signal that ends a run is final.
- `Completer`: any thread appends to its deque; only the completer's thread takes outcomes out.
- `Capacity.reserve` and `ClaimWatermark`: only the claimer's thread writes.
- `PlanCache`: a race makes PostgreSQL plan a statement once more than needed.
"""

from .context.aio import AsyncTaskContext
from .context.current import current_context
from .context.step import Step
from .context.sync import TaskContext
from .results import wait_for, wait_for_async
from .worker import Worker

__all__ = [
    "AsyncTaskContext",
    "Step",
    "TaskContext",
    "Worker",
    "current_context",
    "wait_for",
    "wait_for_async",
]
