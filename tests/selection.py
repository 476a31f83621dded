"""How much of the suite one run takes: `--level quick`, `all` (the default) or `nightly`.

- `quick` is `make test`: the folders and files in QUICK, with one driver.
- `all` is everything but tests marked `nightly`. Where a test is a product of its scenarios with the drivers, each
  scenario runs with one of the drivers; which one depends on its name only. Likewise for the states of the planner.
- `nightly` is everything, with full products.
"""

from __future__ import annotations

from binascii import crc32
from collections import defaultdict
from collections.abc import Callable

import pytest

DRIVERS = ("psycopg", "psycopg async", "asyncpg")
QUICK = (
    "tests/docs/",
    "tests/services/",
    "tests/unit/",
    *(
        f"tests/runtime/test_{name}.py"
        for name in ("cancellation", "context", "events", "failures", "joins", "transactions", "worker")
    ),
)
PLANNER_AXES = {"engine", "mode"}
FULL_PLANS = ("tests/plans/test_run_plans.py", "tests/plans/test_spawn_plans.py")
"""Plans of spawns, claims and completions: every state of the planner's knowledge, at each level."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--level", choices=("quick", "all", "nightly"), default="all", help=__doc__)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    level = config.getoption("--level")
    if level == "nightly":
        return
    if any("::" in argument for argument in config.args):
        return  # tests that are asked for by name run
    quick = level == "quick"
    kept = [item for item in items if not item.get_closest_marker("nightly")]
    if quick:
        kept = [item for item in kept if item.nodeid.startswith(QUICK)]
    kept = [item for item in kept if _on_psycopg(item)] if quick else _sample(kept, _driver_axis)
    kept = _sample(kept, _planner_axis, always=True)
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def _driver_axis(item: pytest.Item) -> set[str]:
    return {name for name, value in _parameters(item).items() if isinstance(value, str) and value in DRIVERS}


def _on_psycopg(item: pytest.Item) -> bool:
    return all(_parameters(item)[name] == DRIVERS[0] for name in _driver_axis(item))


def _planner_axis(item: pytest.Item) -> set[str]:
    return (
        PLANNER_AXES
        if item.nodeid.startswith("tests/plans/") and not item.nodeid.startswith(FULL_PLANS)
        else set()
    )


def _sample(
    items: list[pytest.Item], axis_of: Callable[[pytest.Item], set[str]], *, always: bool = False
) -> list[pytest.Item]:
    """Keep one item of those that differ on their axis only. Unless `always`, only where a test has other parameters."""
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    whole: set[pytest.Item] = set()
    for item in items:
        axis, parameters = axis_of(item), _parameters(item)
        others = {name: value for name, value in parameters.items() if name not in axis}
        if not axis & parameters.keys() or not (others or always):
            whole.add(item)
        else:
            groups[_scenario(item, axis)].append(item)
    for scenario, group in groups.items():
        group.sort(key=lambda item: item.nodeid)  # the same in every process, whatever the order of tests
        whole.add(group[crc32(scenario.encode()) % len(group)])
    return [item for item in items if item in whole]


def _parameters(item: pytest.Item) -> dict[str, object]:
    callspec = getattr(item, "callspec", None)
    return dict(callspec.params) if callspec else {}


def _scenario(item: pytest.Item, axis: set[str]) -> str:
    """The item's name without its parameters on the axis, which are all strings."""
    scenario = item.nodeid
    for name, value in _parameters(item).items():
        if name in axis:
            scenario = scenario.replace(str(value), "", 1)
    return scenario
