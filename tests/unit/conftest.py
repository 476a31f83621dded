"""Nothing here logs in threads: what those of earlier tests still say is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from threading import current_thread

import pytest


@pytest.fixture(autouse=True)
def of_this_thread(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    here = current_thread().name

    def ours(record: object) -> bool:
        return getattr(record, "threadName", here) == here

    caplog.handler.addFilter(ours)
    yield
    caplog.handler.removeFilter(ours)
