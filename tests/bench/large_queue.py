"""Workload 14: workloads 1 to 6 on a queue of a million, against the same on an empty one."""

from __future__ import annotations

from tests.bench import bulk, many_spawners
from tests.bench.models import BigTask, SmallTask
from tests.bench.spawning import alternating, durable_duplicate, durable_spawn, on, on_held
from tests.bench.spawning_async import durable_once, repeated
from tests.bench.workload import Side, Workload


def _among(
    name: str, empty: Side, million: Side, *, operations: int = 1000, block: int | None = 20
) -> Workload:
    return alternating(
        14, f"{name} among a million", "an empty queue", 0.90, (empty, million),
        operations=operations, block=block,
    )  # fmt: skip


_S, _BIG = SmallTask, BigTask
WORKLOADS = [
    _among("spawn", on(durable_spawn, _S), on(durable_spawn, _BIG)),
    _among("async spawn", repeated(durable_once(_S), "psycopg"), repeated(durable_once(_BIG), "psycopg", _BIG)),
    _among("duplicate spawn", on_held(durable_duplicate, _S), on_held(durable_duplicate, _BIG)),
    _among("spawn_many", bulk.durable(_S), bulk.durable(_BIG), operations=10_000, block=None),
    _among(
        "spawn_many, half held,", bulk.durable(_S, half_held=True), bulk.durable(_BIG, half_held=True),
        operations=10_000, block=None,
    ),
    _among(
        "8 processes' spawns", many_spawners.together("durable", _S), many_spawners.together("durable", _BIG),
        operations=3200, block=800,
    ),
    _among(
        "16 racing for a key", many_spawners.racing(many_spawners.durable_racer, _S),
        many_spawners.racing(many_spawners.durable_racer, _BIG), operations=200, block=10,
    ),
]  # fmt: skip
