"""Private PostgreSQL clusters, for suites that break them. Nothing here touches the server of the other tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sa_durable.embedded import Server, postgres

# What was committed survives the death of every process, as on a server that people use; only not of the machine.
SETTINGS = {
    "max_connections": "300",
    "deadlock_timeout": "200ms",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "track_commit_timestamp": "on",  # the checker asks when an effect was committed
}


class Cluster:
    """A server of the test's own, and its log."""

    def __init__(self, server: Server) -> None:
        assert server.data_dir is not None
        self.server, self.url = server, server.url
        self.data_dir: Path = server.data_dir
        self._log = self.data_dir.parent / "log"

    @property
    def log_size(self) -> int:
        return self._log.stat().st_size

    def logged(self, what: str, since: int = 0) -> int:
        """How often the server's log says so, from the byte `since` on."""
        with self._log.open("rb") as log:
            log.seek(since)
            return len(re.findall(what.encode(), log.read()))

    def crash(self) -> None:
        """Every process of it ends at once; what follows has to recover from the log."""
        self.server.stop("immediate")

    def start(self) -> None:
        self.server.start()


@contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    with postgres(settings={**SETTINGS, **settings}, environ={}) as server:
        yield Cluster(server)
