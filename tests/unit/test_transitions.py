"""The table of state transitions makes sense; tests/services compare it with what the database sees."""

from __future__ import annotations

import pytest

from sa_durable import TaskState
from sa_durable.models.predicates import ACTIVE as ACTIVE_SQL
from sa_durable.models.predicates import TERMINAL as TERMINAL_SQL
from sa_durable.values import ACTIVE, TERMINAL, TRANSITIONS, Operation


def _reached_from(start: TaskState | None) -> set[TaskState]:
    reached: set[TaskState] = set()
    edge = {start}
    while edge:
        edge = {
            to for (state, _), targets in TRANSITIONS.items() if state in edge for to in targets
        } - reached
        reached |= edge
    return reached


def test_every_state_is_reached_by_a_spawned_task():
    assert _reached_from(None) == set(TaskState)


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_every_active_task_can_reach_every_end(state):
    assert _reached_from(state) >= TERMINAL


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_terminal_state_is_left_only_by_an_explicit_retry(state):
    assert {operation for (start, operation) in TRANSITIONS if start is state} <= {Operation.RETRY}


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_every_active_task_can_be_cancelled(state):
    assert TRANSITIONS[state, Operation.CANCEL] == {TaskState.CANCELLED}


def test_only_a_claim_starts_a_run_and_only_a_run_completes():
    assert {key for key, targets in TRANSITIONS.items() if TaskState.RUNNING in targets} == {
        (TaskState.PENDING, Operation.CLAIM)
    }
    assert {key for key, targets in TRANSITIONS.items() if TaskState.COMPLETED in targets} == {
        (TaskState.RUNNING, Operation.COMPLETE)
    }


def test_spawn_is_the_only_beginning_and_starts_nothing():
    assert [operation for (start, operation) in TRANSITIONS if start is None] == [Operation.SPAWN]
    assert TRANSITIONS[None, Operation.SPAWN] == {TaskState.PENDING, TaskState.SLEEPING}


@pytest.mark.parametrize("key", TRANSITIONS, ids=lambda key: f"{key[0]}-{key[1]}")
def test_transition_leads_somewhere(key):
    assert TRANSITIONS[key]


def test_states_are_active_or_terminal():
    assert set(TaskState) == ACTIVE | TERMINAL
    assert not ACTIVE & TERMINAL
    assert {state for state in TaskState if state.terminal} == TERMINAL


@pytest.mark.parametrize("states, sql", [(ACTIVE, ACTIVE_SQL), (TERMINAL, TERMINAL_SQL)])
def test_sql_names_the_same_states(states, sql):
    assert {state for state in TaskState if f"'{state}'" in sql} == states
