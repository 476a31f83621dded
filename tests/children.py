"""Read what child processes print. A process that is killed can leave a line that is cut off in the middle."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any


class ChildEnded(AssertionError):
    """A child process ended before it printed the line that the caller reads."""


def complete_lines(stream: IO[str]) -> Iterator[str]:
    """Yield the lines of a stream without their line ends. A last line without an end is cut off: it is dropped."""
    with suppress(UnicodeDecodeError):  # cut off inside a character
        while (line := stream.readline()).endswith("\n"):
            yield line[:-1]


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of the process's output. Raises ChildEnded if the process ended instead."""
    assert process.stdout is not None
    for line in complete_lines(process.stdout):
        return line
    raise _ended(process, "before it had printed a whole line")


def read_error_until(process: subprocess.Popen[str], text: str) -> str:
    """Return what the process printed to stderr, up to the first line that contains `text`.

    Raises ChildEnded if the process ended without such a line.
    """
    assert process.stderr is not None
    printed = ""
    for line in complete_lines(process.stderr):
        printed += f"{line}\n"
        if text in line:
            return printed
    raise _ended(process, f"without saying {text!r}:\n{printed}")


def _ended(process: subprocess.Popen[Any], how: str) -> ChildEnded:
    with suppress(subprocess.TimeoutExpired):  # it has closed its output, and may go on without
        process.wait(10)
    said = ""
    if process.stderr is not None and process.poll() is not None:
        with suppress(UnicodeDecodeError):
            said = process.stderr.read()
    return ChildEnded(f"process {process.pid} ended with status {process.poll()} {how}\n{said}")
