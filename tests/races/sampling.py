"""How many of the ways in which two can meet are tried.

`SA_DURABLE_LOCK_ORDER` is `wide`, for `make faults`: whatever the library does, a few of the moments at which the other
one can come; or, for long runs, `full`: in all scenes, before each statement. `SA_DURABLE_LOCK_SHARE` of these is drawn (all,
if it isn't set), by `FAULTS_SEED`, which what fails names.
"""

from __future__ import annotations

import os
from random import Random, SystemRandom

WIDE = bool(HOW := os.environ.get("SA_DURABLE_LOCK_ORDER"))
FULL = HOW == "full"
SHARE = float(os.environ.get("SA_DURABLE_LOCK_SHARE") or 1)
SEED = os.environ.get("FAULTS_SEED") or str(SystemRandom().randrange(10**6))


def drawn(*case: str) -> bool:
    """Whether this case is one of those that are tried: the same for the same seed, whatever else runs."""
    return SHARE >= 1 or Random(f"{SEED} {case}").random() < SHARE


def moments(statements: int) -> list[int]:
    """After how many of its `statements` the first one is held."""
    inside = range(1, statements)
    return list(inside) if FULL else sorted({1, len(inside) // 2} & set(inside))
