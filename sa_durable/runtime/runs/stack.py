"""Format the current stack of a running handler."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from traceback import FrameSummary, StackSummary, walk_stack
from types import FrameType
from typing import Any

from .active import ActiveRun

_RUNTIME_DIRECTORY = str(Path(__file__).parents[1])


def format_current_stack(run: ActiveRun) -> str:
    """Return the lines that a run's handler executes now, in the format of a traceback. From any thread.

    The frames of the library around the handler are left out. For an async handler that waits, the result has
    the coroutines that await each other, down to the innermost one.
    """
    task = run.task  # read once: another thread may clear it
    coroutine: Any = task.get_coro() if task else None
    waits = coroutine is not None and not coroutine.cr_running
    frames = _awaiting(coroutine) if waits else _running(run.thread)
    stack = list(StackSummary.extract(frames))
    executors = [
        place
        for place, frame in enumerate(stack)
        if frame.filename.endswith("executor.py") and _is_library_frame(frame)
    ]
    handler_on = stack[max(executors, default=-1) + 1 :]
    return "".join(StackSummary(dropwhile(_is_library_frame, handler_on)).format())


def _is_library_frame(frame: FrameSummary) -> bool:
    return frame.filename.startswith(_RUNTIME_DIRECTORY)


def _running(thread: int | None) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a thread, outermost first."""
    frame = sys._current_frames().get(thread or 0)  # noqa: SLF001 - documented, and there is no other way
    yield from reversed(list(walk_stack(frame))) if frame else ()


def _awaiting(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a waiting coroutine and of those that it awaits."""
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        yield frame, frame.f_lineno
        coroutine = coroutine.cr_await
