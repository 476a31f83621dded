# `make test` on a machine that has only Python 3.11 (or later) and make sets itself up and runs everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The other end of the support matrix: the oldest SQLAlchemy series, with a PostgreSQL that is installed here.
VENV20 := .venvs/sqlalchemy20
DEBIAN_PG := $(firstword $(wildcard /usr/lib/postgresql/15/bin /usr/lib/postgresql/*/bin))
WORKERS ?= 2

.PHONY: help setup check format lint types layers faults-locks test test-matrix test-roles test-sizes test-pooler faults bench bench-docs bench-peers demo docs clean

help:  ## What there is to make
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(VENV)/.ready  ## A virtual environment with everything

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV20)/.ready: pyproject.toml
	test -x $(VENV20)/bin/python || $(PYTHON) -m venv $(VENV20)
	$(VENV20)/bin/python -m pip install --quiet --upgrade pip
	$(VENV20)/bin/python -m pip install --quiet 'sqlalchemy[asyncio]>=2.0.40,<2.1' --editable '.[dev]'
	touch $@

check: lint layers types  ## Everything that reads the code without running it

format: setup  ## Rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

layers: setup
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy
	$(BIN)/pyright

test: setup test-full test-oldest  ## The full suite on SQLAlchemy 2.1 and the wheel's PostgreSQL, the services on the oldest pair

.PHONY: test-full test-oldest
test-full: setup
	$(BIN)/python -m pytest -n $(WORKERS)

# The other end of what is supported, where an older PostgreSQL is installed: SQLAlchemy 2.0 with that.
test-oldest: setup $(VENV20)/.ready
	$(if $(DEBIAN_PG),SA_DURABLE_PG_BIN=$(DEBIAN_PG)) $(VENV20)/bin/python -m pytest -n $(WORKERS) -m service

test-matrix: setup $(VENV20)/.ready  ## The service tests on the pairs that `make test` leaves out
	$(VENV20)/bin/python -m pytest -n $(WORKERS) -m service
	@if [ -n "$(DEBIAN_PG)" ]; then set -x; \
	  SA_DURABLE_PG_BIN=$(DEBIAN_PG) $(BIN)/python -m pytest -n $(WORKERS) -m service; \
	else echo 'No installed PostgreSQL found: the service tests ran on the wheel only.'; fi

# Variables given to make are in the environment: FAULTS_SEED=... repeats a run, SOAK=600 makes each load last so long.
faults: setup  ## Kill, freeze, cut and fill up what there is: nothing is lost or done twice (FAULTS_SEED=1 SOAK=600)
	$(BIN)/python -m pytest tests/faults -p no:randomly $(ARGS)
	SA_DURABLE_LOCK_ORDER=wide $(BIN)/python -m pytest -n $(WORKERS) tests/races/test_lock_order.py

# SOAK=1 draws a quarter of some 60,000 meetings by FAULTS_SEED; SA_DURABLE_LOCK_SHARE=1 is all of them, for hours.
faults-locks: setup  ## All that can happen to a task overlaps, lives at random against a model, and fuzzing (SOAK=1: much more of it)
	SA_DURABLE_LOCK_ORDER=$(if $(SOAK),full,wide) SA_DURABLE_LOCK_SHARE=$(or $(SA_DURABLE_LOCK_SHARE),$(if $(SOAK),0.25,1)) $(BIN)/python -m pytest -n $(WORKERS) tests/races/test_lock_order.py tests/races/test_lock_order_of_keys.py
	HYPOTHESIS_PROFILE=soak SA_DURABLE_LIVES=$(if $(SOAK),300,60) $(BIN)/python -m pytest -n $(WORKERS) tests/machine $(if $(SOAK),tests/fuzzing)

test-roles: setup  ## The services and the runtime as somebody with the roles of docs/operations/roles.sql and no other rights
	SA_DURABLE_TEST_ROLES=1 $(BIN)/python -m pytest -n $(WORKERS) -m 'not owner' tests/services tests/runtime

test-sizes: setup  ## What make test does with fewer: 1,000 races, 200 kills of each kind, an upgrade of 500,000 rows under load
	SA_DURABLE_RACES=1000 $(BIN)/python -m pytest -n $(WORKERS) tests/races/test_cascades.py tests/races/test_waking.py
	SA_DURABLE_KILLS=200 $(BIN)/python -m pytest -n $(WORKERS) tests/runtime/test_killed_transactions.py
	SA_DURABLE_UPGRADE_ROWS=500000 $(BIN)/python -m pytest -n 0 -s tests/migrations/test_under_load.py

test-pooler: setup  ## The services and the runtime through PgBouncer in transaction mode, two connections for each database
	$(BIN)/python -m pytest -p tests.faults.through_pooler -n $(WORKERS) tests/services tests/runtime

bench: setup  ## Each figure beside its limit, measured in the same rounds (ARGS="--list", "--only 7", "--quick", ...)
	$(BIN)/python -m tests.bench $(ARGS)

bench-docs: setup  ## The same, written to docs/benchmarks: tables, chart and JSON
	$(BIN)/python -m tests.bench --json docs/benchmarks/results.json $(ARGS)
	$(BIN)/python -m tests.bench.documents

# Their environments are made in .venvs/peers, from the pinned versions in tests/bench/peers/requirements.
bench-peers: setup  ## The same workloads for Procrastinate, PgQueuer, DBOS, absurd-sdk and us, side by side (ARGS="--only drain", ...)
	$(BIN)/python -m tests.bench.peers $(ARGS)

demo: setup  ## Webhook deliveries, four spawners, a worker, two kill -9: each event is handled once
	$(BIN)/python -m sa_durable.demo $(ARGS)

clean:  ## Remove what setup made
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
