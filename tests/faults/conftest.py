"""`FAULTS_SEED=...` repeats a run, `SOAK=600` makes each load last so many seconds, FAULTS_JSON says where figures go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from random import SystemRandom
from typing import Any, NoReturn

import pytest

from tests.databases import throwaway, url_of
from tests.faults import figures as figures_
from tests.faults.cluster import Cluster, cluster
from tests.faults.figures import Figures
from tests.faults.load import Load, Plan, under_load

SEED = os.environ.get("FAULTS_SEED") or str(SystemRandom().randrange(10**6))
SOAK = float(os.environ.get("SOAK") or 0)
JSON = Path(os.environ.get("FAULTS_JSON") or "build/faults.json")
RATE = 34.0  # tasks per second, which leaves the workers idle for half of their time on two cores
_all: list[Figures] = []


def pytest_report_header() -> str:
    return f"faults: FAULTS_SEED={SEED} SOAK={SOAK:g}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(300 + 3 * SOAK))


def missing(what: str) -> NoReturn:
    """This machine can't do the fault. Where all of them are asked for (FAULTS_ALL, in CI), that is a failure."""
    if os.environ.get("FAULTS_ALL"):
        pytest.fail(what)
    pytest.skip(what)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _all:
        terminalreporter.section(f"faults, FAULTS_SEED={SEED}")
        for line in figures_.table(_all):
            terminalreporter.write_line(line)
        figures_.write_json(JSON, _all)
        terminalreporter.write_line(f"figures: {JSON}")


def seconds(short: float) -> float:
    """How long a load lasts."""
    return max(short, SOAK)


@pytest.fixture
def figures() -> Callable[[str], Figures]:
    """New figures of a case, which are printed at the end."""

    def new(case: str) -> Figures:
        _all.append(made := Figures(case, SEED))
        return made

    return new


@pytest.fixture(scope="session")
def steady() -> Iterator[Cluster]:
    """A cluster that is not itself broken."""
    with cluster() as made:
        yield made


Loading = Callable[..., AbstractContextManager[Load]]


@pytest.fixture
def loaded(steady: Cluster, figures: Callable[[str], Figures]) -> Loading:
    """`with loaded("C1 ...", 20, workers=4) as load`: a load of so many seconds on a database of its own."""

    @contextmanager
    def begin(case: str, short: float, **options: Any) -> Iterator[Load]:
        lasts = seconds(short)
        plan = Plan(**{"tasks": int(RATE * lasts), "seconds": lasts, **options})
        with throwaway(steady.url) as engine, under_load(steady, url_of(engine), plan, figures(case)) as load:
            yield load

    return begin
