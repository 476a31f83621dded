"""Runs a server for as long as its owner lives. A script, which `server.py` starts.

The owner holds the other end of our standard input. A letter there is an order to stop the server. Its end, which
the kernel delivers after a kill -9 too, says that nobody needs the server any more: it is stopped and its directory
removed. That is also how a server ends on an ordinary day, so the path for crashes is the one that always runs.

Whoever is signalled here is our own child, not yet waited for: its number can't have passed to another process.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

OWNER = 0  # standard input
ORDERS = {
    b"f": signal.SIGINT,
    b"i": signal.SIGQUIT,
    b"": signal.SIGQUIT,
}  # fast, immediate; b"" is the end of file
PATIENCE = 30.0  # seconds from an order to a SIGKILL; an immediate stop kills its own stragglers after 5


def main(directory: str, commands: list[list[str]], user: dict[str, Any]) -> int:
    """Run each command once the one before has succeeded. The last is the server, which ends when it is told to."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the owner may have blocked some
    # Only the owner ends us: not a Ctrl-C, not a hang-up. A handler, because an ignored signal would be inherited.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    status = 0
    for command in commands:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=directory, **user)
        if (status := _attend(child, woken)) != 0:
            break
    if _owner_is_gone():
        remove(directory)
    return status


def _attend(child: subprocess.Popen[bytes], woken: int) -> int:
    """Wait for the child to end, by itself or by order."""
    while child.poll() is None:
        readable, _, _ = select.select([OWNER, woken], [], [])
        if OWNER in readable:
            child.send_signal(ORDERS[os.read(OWNER, 1)])
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            return 1  # whatever was to follow is not wanted any more
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 512)
    return child.returncode


def _owner_is_gone() -> bool:
    readable, _, _ = select.select([OWNER], [], [], 0)
    return bool(readable) and os.read(OWNER, 1) == b""


def remove(directory: str) -> None:
    """The last children of an interrupted initdb may still be adding files: try again for five seconds."""
    for _ in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):  # noqa: PTH110 (pathlib costs 10 ms of a start)
            return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
