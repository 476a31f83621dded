"""The benchmark suite measures what issue 5 asks for, and its frame computes what it says."""

import time
from contextlib import contextmanager
from io import StringIO
from math import inf

import pytest
from rich.console import Console
from sqlalchemy import Engine, create_engine

from tests.bench import alternation, documents, results, suite
from tests.bench.alternation import Prepared
from tests.bench.figures import at_most, figure, ratio_at_least
from tests.bench.machine import this_machine
from tests.bench.workload import Bench, Workload, pair
from tests.databases import url_of

GOALS = {
    1: {"≥ 0.9"},
    2: {"≥ 0.85"},
    3: {"≥ 0.85"},
    4: {"≥ 0.6", "≥ 0.5"},
    5: {"≥ 0.85"},
    6: {"≥ 0.8"},
    7: {"≥ 0.6"},
    8: {"≥ 0.25"},
    9: {"≥ 0.25"},
    10: {"≥ 1.4"},
    11: {"≥ 0.7"},
    12: {"≥ 0.7"},
    13: {"≤ 4", "≤ 8"},  # ms
    14: {"≥ 0.9"},
    15: {"≤ 20", "≤ 5"},  # ms, s
    16: {"≤ 5", "≤ 1"},  # statements a second, per cent of a processor
    17: {"≤ 3", "≥ 95", "≤ 1.25"},  # times what it was, per cent, times ("stable")
    18: {"≤ 200", "≤ 1.1"},  # MB, times ("flat")
}  # the peers' goals, 1.2 times PgQueuer, are of tests/bench/peers


@pytest.mark.parametrize("number", GOALS)
def test_a_workload_of_the_table_has_the_goals_of_the_table(number):
    ours = [workload for workload in suite.workloads() if workload.number == number]
    assert {str(goal) for workload in ours for goal in workload.goals.values()} == GOALS[number]


def test_names_are_unique():
    names = [workload.name for workload in suite.workloads()]
    assert len(names) == len(set(names))


def test_limit_and_library_alternate_and_each_round_restarts(monkeypatch):
    monkeypatch.setattr(alternation, "LONGEST", inf)
    ran: list[str] = []
    sides = [Prepared(lambda: ran.append("("), lambda: ran.append("a")), lambda: ran.append("b")]
    of_a, of_b = alternation.rates(sides, rounds=2, blocks=3, block=7, before=lambda: ran.append(" "))
    assert "".join(ran) == " b(a (abb(a(ab b(a(abb(a"
    assert len(of_a) == len(of_b) == 2
    assert min(of_a + of_b) > 0


def test_slow_round_ends_early_with_equal_blocks_of_each_side(monkeypatch):
    monkeypatch.setattr(alternation, "LONGEST", 0.0)
    ran: list[str] = []
    alternation.rates([lambda: ran.append("a"), lambda: ran.append("b")], rounds=1, blocks=20)
    assert "".join(ran) == "ba" + "ab"


def test_what_prepares_a_block_is_not_measured():
    clock = [0.0]
    prepared = Prepared(lambda: clock.__setitem__(0, 100.0), lambda: clock.__setitem__(0, clock[0] + 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: clock[0])
        assert alternation.seconds(prepared) == 2


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians():
    got = figure("/s", [50, 90, 100], [100, 100, 50])
    assert (got.ratio.median, got.ratio.lowest, got.ratio.highest) == (0.9, 0.5, 2)
    assert ratio_at_least(0.9).met(got)
    assert not ratio_at_least(0.91).met(got)
    assert at_most(90).met(got)


def test_a_run_tells_every_figure_its_goal_and_what_went_wrong(engine: Engine):
    def two(bench: Bench):
        yield figure("ms", [3.0, 5.0, 4.0], name="p50")
        yield figure("ms", [9.0], name="p95")

    def breaks(bench: Bench):
        raise RuntimeError("no such thing")
        yield

    def spins(bench: Bench, number: int):
        return lambda: sum(range(number))

    workloads = [
        pair(1, "spins", limit="spins", goal=ratio_at_least(0.0), operations=500, block=50, sides=(spins, spins)),
        Workload(13, "waits", "", two, {"p50": at_most(4), "p95": at_most(8)}),
        Workload(None, "breaks", "", breaks),
    ]  # fmt: skip
    done = results.measured(workloads, Bench(engine, url_of(engine), rounds=2), this_machine(engine))
    assert [(row.workload, str(row.goal or ""), row.met) for row in done.rows] == [
        ("spins", "≥ 0", True),
        ("waits", "≤ 4", True),
        ("waits", "≤ 8", False),
        ("breaks", "", None),
    ]
    assert results.from_json(results.as_json(done)) == done
    console = Console(width=200, record=True, file=StringIO())
    console.print(results.table(done))
    shown = console.export_text()
    assert all(word in shown for word in ("spins / spins", "p95", "no such thing"))


def test_only_finds_numbers_and_parts_of_names():
    among = [Workload(1, "spawn", "", list), Workload(11, "Steps", "", list), Workload(None, "x", "", list)]

    def names(only):
        return [workload.name for workload in suite.chosen(among, only)]

    assert names("1") == ["spawn"]
    assert names("1,11") == ["spawn", "Steps"]
    assert names("step") == ["Steps"]
    assert names("") == ["spawn", "Steps", "x"]


def test_a_workload_gives_back_what_it_entered_even_if_it_fails(engine: Engine):
    gone = []

    @contextmanager
    def thing():
        yield
        gone.append("thing")

    def measure(bench: Bench):
        bench.enter(thing())
        yield figure("s", [1.0])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        list(Workload(None, "x", "", measure).figures(Bench(engine, "")))
    assert gone == ["thing"]


def test_tables_that_workloads_share_are_made_once():
    made = []
    bench = Bench(create_engine("postgresql+psycopg://"), "")

    def make(of: Bench):
        made.append(of)
        return "tables"

    assert bench.once(make) == bench.once(make) == "tables"
    assert made == [bench]


def test_figures_of_the_docs_come_from_the_json_beside_them():
    page = (documents.PAGES / documents.PAGE).read_text()
    run = results.from_json((documents.PAGES / documents.RESULTS).read_bytes())
    assert documents.renewed(page, run) == page
