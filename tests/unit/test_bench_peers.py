"""The comparison with the peers measures everybody alike, and computes what it says."""

import re

import pytest

from tests.bench.figures import p95
from tests.bench.machine import Machine
from tests.bench.peers import report, rounds
from tests.bench.peers.contenders import CONTENDERS, HERE, Contender, DriverFailed, driver
from tests.bench.peers.rounds import Side
from tests.bench.peers.workloads import GOALS, SECONDS, WORKLOADS, chosen

WORKLOAD = WORKLOADS[0]
MACHINE = Machine(
    date="today",
    commit="1",
    processor="p",
    cores=2,
    memory_gb=1.0,
    load=0.0,
    system="s",
    versions={"Python": "3", "PostgreSQL": "18"},
    settings={},
)


class Pretender:
    """A driver that does everything at a rate of its own."""

    workloads = ("spawn", "pick-up")

    def __init__(self, name, rate, said):
        self.contender = Contender(name, "none.py")
        self.versions = {name: "1"}
        self._rate, self._said = rate, said

    def ask(self, workload, number, **_):
        self._said.append((self.contender.name, number))
        if self._rate == 0:
            raise DriverFailed("it can't")
        if workload == "pick-up":
            return {"milliseconds": [1.0] * (number - 1) + [self._rate], "number": number}
        return {"seconds": number / self._rate, "number": number}


def measured(*drivers, only, rounds_=3, scale=1.0):
    return rounds.measured(drivers, chosen(only), rounds=rounds_, scale=scale, lock=None, say=lambda _: None)


def test_goals_name_workloads_and_contenders():
    names = {workload.name for workload in WORKLOADS}
    assert {name for goal in GOALS for name in (goal.workload, *goal.beside)} <= names
    assert {name for goal in GOALS for name in goal.rivals} <= {contender.name for contender in CONTENDERS}


def test_drivers_and_pinned_requirements_are_there():
    for contender in CONTENDERS:
        assert (HERE / "drivers" / contender.driver).exists()
    for file in (HERE / "requirements").iterdir():
        pinned = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert pinned
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned), file


def test_each_contender_does_each_round_and_they_take_turns_in_going_first():
    said = []
    sides = measured(*(Pretender(name, 5000, said) for name in "abc"), only=WORKLOAD.name, rounds_=5)
    assert [len(side.values) for side in sides[WORKLOAD.name].values()] == [5, 5, 5]
    firsts = [said[3 * i][0] for i in range(1 + 5 * WORKLOAD.slices)]
    assert set(firsts) == {"a", "b", "c"}
    assert {sum(name == each for name, _ in said) for each in "abc"} == {1 + 5 * WORKLOAD.slices}


def test_slow_contenders_fill_their_time_and_fast_ones_their_round():
    said = []
    slow, fast = Pretender("slow", 300, said), Pretender("fast", 1_000_000, said)
    sides = measured(slow, fast, only=WORKLOAD.name)[WORKLOAD.name]
    assert (sides["slow"].number, sides["fast"].number) == (int(300 * SECONDS), WORKLOAD.number)


def test_failed_contender_is_dropped_and_reported():
    sides = measured(Pretender("bad", 0, []), Pretender("good", 10, []), only=WORKLOAD.name)
    assert sides[WORKLOAD.name]["bad"].error == "it can't"
    assert len(sides[WORKLOAD.name]["good"].values) == 3
    assert list(report.verdicts(sides)) == []


def test_latencies_have_a_median_and_a_95th_percentile():
    side = Side()
    side.add([{"milliseconds": [*range(1, 60)]}, {"milliseconds": [*range(60, 100)]}])
    assert (side.values, p95(side.latencies)) == ([50], 95.0)


def test_a_goal_compares_round_by_round_with_the_best_rival_of_the_round():
    goal = next(goal for goal in GOALS if goal.beside)
    ten, best = goal.beside
    sides = {
        ten: {"sa_durable": Side(values=[12.0, 24.0, 10.0]), "PgQueuer": Side(values=[1.0, 1.0, 20.0])},
        best: {"sa_durable": Side(values=[99.0] * 3), "PgQueuer": Side(values=[10.0, 10.0, 10.0])},
    }
    verdict = next(v for v in report.verdicts(sides) if v.goal == str(goal))
    assert (verdict.ratio.lowest, verdict.ratio.median, verdict.ratio.highest) == (0.5, 1.2, 2.4)
    assert verdict.met


def test_driver_process_answers_reports_failures_and_ends_with_its_input(tmp_path, monkeypatch):
    program = tmp_path / "drivers" / "echo.py"
    program.parent.mkdir()
    program.write_text(
        "from speak import Order, serve\n"
        "def ok(order: Order): print('noise'); return {'seconds': 1.0, 'number': order.number}\n"
        "async def bad(order: Order): raise RuntimeError('no such table')\n"
        "serve({'ok': ok, 'bad': bad}, packages=['pytest'])\n"
    )
    (program.parent / "speak.py").write_text((HERE / "drivers" / "speak.py").read_text())
    monkeypatch.setattr("tests.bench.peers.contenders.HERE", tmp_path)
    with driver(Contender("echo", "echo.py"), "postgresql://nowhere") as echo:
        assert echo.workloads == ["bad", "ok"]
        assert echo.versions == {"pytest": pytest.__version__}
        with pytest.raises(DriverFailed, match="no such table"):
            echo.ask("bad", 1)
        assert echo.ask("ok", 7) == {"seconds": 1.0, "number": 7}
        process = echo._process
    assert process.returncode == 0


def test_the_page_gets_the_runs_table_with_a_column_for_each_contender():
    said = []
    drivers = [Pretender("sa_durable", 5000, said), Pretender("peer", 2500, said)]
    workloads = [WORKLOAD, *chosen("pick-up")]
    sides = measured(*drivers, only="") | {}
    done = report.results(MACHINE, drivers, workloads, sides, rounds=3, scale=1.0, seconds=1.0)
    page = report.renewed("before\n<!-- the run -->\nold\n<!-- /the run -->\nafter\n", done)
    assert page.startswith("before\n<!-- the run -->\n") and page.endswith("\n<!-- /the run -->\nafter\n")
    assert "old" not in page
    assert "| | sa_durable | peer |" in page
    assert f"| {WORKLOAD.name}, /s | 5,000" in page
    assert "- met: " in page
