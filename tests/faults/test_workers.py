"""C1 and C2: what befalls worker processes."""

from __future__ import annotations

from tests.faults import scenarios


def check(figures, bound=None, longest=None) -> None:
    assert figures.findings == []
    if bound is not None:
        figures.check_recovery(bound, longest=longest)


def test_nothing_is_lost_or_done_twice_when_workers_are_killed_at_random(loaded):
    with loaded("C1 kill -9", 60) as load:
        scenarios.kill_workers(load)
        figures = load.settle()
        check(figures, load.crew.job.recovery)
    assert figures.faults >= 25


def test_frozen_worker_finds_its_leases_lost_and_writes_nothing(loaded):
    with loaded("C2 SIGSTOP past the lease", 20) as load:
        scenarios.freeze_workers(load)
        # Frozen between a write and its COMMIT it keeps the row locked until it wakes: sweeps pass over that meanwhile.
        bound = load.crew.job.recovery
        check(load.settle(), bound, longest=bound + scenarios.LONGEST_FREEZE * load.crew.job.lease)
        assert any("LeaseLost" in hand.log for hand in load.crew.hands)


def test_old_runs_write_nothing_although_their_clocks_show_a_lease(loaded):
    with loaded("C2 suspended machines", 8, **scenarios.SLOWLY) as load:
        scenarios.skip_time(load)
        check(load.settle())


def test_handlers_that_block_the_loop_for_longer_than_a_lease_keep_it(loaded):
    with loaded("B30 blocked event loops", 5, workers=2, tasks=40, job={"lease": 3.0}) as load:
        scenarios.block_loops(load)
        check(load.settle())
