"""Start processes that all migrate at once: `python -m tests.migrations.migrators NUMBER URL`. Prints how many failed."""

from __future__ import annotations

import os
import sys
import traceback

from sqlalchemy import NullPool, create_engine

from tests.migrations.host import upgrade


def migrate(url: str) -> int:
    try:
        upgrade(create_engine(url, poolclass=NullPool))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(number: int, url: str) -> int:
    children = []
    for _ in range(number):
        if (pid := os.fork()) == 0:
            os._exit(migrate(url))
        children.append(pid)
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
    print(f"{failed} of {number} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
