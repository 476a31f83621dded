"""Where a handler is that doesn't come to its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from traceback import FrameSummary, StackSummary, walk_stack
from types import FrameType
from typing import Any

from .active import ActiveRun

_HERE = str(Path(__file__).parents[1])


def format_current_stack(run: ActiveRun) -> str:
    """The lines that it is at now, from the handler on, as a traceback has them; from any thread.

    Of an async handler that waits: those that await each other, down to what isn't a coroutine.
    """
    task = run.task  # which another thread may take away
    coroutine: Any = task.get_coro() if task else None
    waits = coroutine is not None and not coroutine.cr_running
    frames = _awaiting(coroutine) if waits else _running(run.thread)
    stack = list(StackSummary.extract(frames))
    executors = [
        place for place, frame in enumerate(stack) if frame.filename.endswith("executor.py") and _ours(frame)
    ]
    return "".join(StackSummary(dropwhile(_ours, stack[max(executors, default=-1) + 1 :])).format())


def _ours(frame: FrameSummary) -> bool:
    return frame.filename.startswith(_HERE)


def _running(thread: int | None) -> Iterator[tuple[FrameType, int]]:
    frame = sys._current_frames().get(thread or 0)  # noqa: SLF001 - documented; threads have no other way to be seen
    yield from reversed(list(walk_stack(frame))) if frame else ()


def _awaiting(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        yield frame, frame.f_lineno
        coroutine = coroutine.cr_await
