"""The methods of Durable that act on a whole queue, for operators."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy.orm import Session

from ..models import DurableTask, queue_of
from ..values import CleanedUp
from . import claims, cleanup, queues


class QueueOperations:
    """Operations on a queue, in the session's transaction. A base class of Durable."""

    __slots__ = ()

    session: Session

    def pause(self, queue: type[DurableTask]) -> bool:
        """Pause a queue: once the caller commits, workers claim nothing from it.

        Runs that have started go on. Tasks can still be spawned. The queue stays paused until `resume`. A
        queue that is paused already keeps the time at which it was paused (`durable_queues.paused_at`).

        Commit soon. Until then, other operators of the queue wait, and its idle workers poll instead of being
        notified.

        Args:
            queue: The queue's model, for example BillingTask.

        Returns:
            Whether this call paused the queue. False if it was paused already.

        Raises:
            UnknownQueue: `queue` is no queue's model.
            SchemaOutdated: The database lacks the tables of the queue.
            RetryTransaction: At REPEATABLE READ or SERIALIZABLE, a concurrent transaction changed the queue's
                row.
        """
        return queues.pause(self.session, queue_of(queue))

    def resume(self, queue: type[DurableTask]) -> bool:
        """Resume a paused queue: once the caller commits, workers claim its tasks again.

        Args:
            queue: The queue's model.

        Returns:
            Whether this call resumed the queue. False if no committed pause exists. A transaction at
            REPEATABLE READ or SERIALIZABLE doesn't see a pause that was committed after its snapshot.

        Raises:
            UnknownQueue, SchemaOutdated, RetryTransaction: As `pause`.
        """
        return queues.resume(self.session, queue_of(queue))

    def set_retention(self, queue: type[DurableTask], retention: timedelta | None) -> bool:
        """Set how long finished tasks and settled events of a queue are kept. Workers delete older ones.

        Args:
            queue: The queue's model.
            retention: A positive duration. None, the default of a queue, keeps everything.

        Returns:
            Whether this call changed the retention.

        Raises:
            InvalidOptions: `retention` is no positive timedelta. Nothing was sent.
            UnknownQueue, SchemaOutdated, RetryTransaction: As `pause`.
        """
        return queues.set_retention(self.session, queue_of(queue), retention)

    def count_ready(
        self, queue: type[DurableTask], names: Sequence[str] | None = None, *, limit: int = 10_000
    ) -> int:
        """Count the tasks that workers could claim now: ready tasks, and sleeping tasks that are due.

        For autoscalers: one statement, which stops counting at `limit`.

        Args:
            queue: The queue's model.
            names: Count only tasks with these names. None: all names.
            limit: The largest number to return, from 1.

        Returns:
            The number of tasks, at most `limit`. 0 while the queue is paused.

        Raises:
            InvalidOptions: `names` is a string, or `limit` is no positive integer.
        """
        return claims.count_ready(self.session, queue_of(queue), names=names, limit=limit)

    def clean_up(self, queue: type[DurableTask], *, older_than: timedelta, limit: int = 1000) -> CleanedUp:
        """Delete tasks of a queue that ended long ago, and events that were settled long ago.

        A task goes with its history. The oldest go first. Workers do the same for queues that have a
        retention (`set_retention`). Call it in transactions of their own, until both numbers are smaller than
        `limit`.

        Keys of deleted tasks are free. A task that awaits a deleted event waits for the next one of its name,
        and a task that joins a deleted task gets TaskNotFound: keep both for longer than your workflows take.
        These stay:

        - tasks and events that a waiting task still needs;
        - children, until their parent has ended that long ago, too;
        - tasks that rows of yours refer to by a foreign key, unless the key says ON DELETE CASCADE or SET
          NULL;
        - rows that another transaction has locked.

        Args:
            queue: The queue's model.
            older_than: How long ago a task must have ended, or an event been settled.
            limit: The largest number of tasks, and of events, to delete.

        Returns:
            The numbers of deleted tasks and events.

        Raises:
            InvalidOptions: `older_than` is no timedelta from zero, or `limit` no positive integer. Nothing
                was sent.
        """
        return cleanup.clean_up(self.session, queue_of(queue), older_than=older_than, limit=limit)
