# `make test` needs Python 3.11 or later and make; it sets up a virtual environment and runs the core of the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest supported SQLAlchemy series has a virtual environment of its own.
VENV20 := .venvs/sqlalchemy20
DEBIAN_PG := $(firstword $(wildcard /usr/lib/postgresql/15/bin /usr/lib/postgresql/*/bin))
WORKERS ?= 2

.PHONY: help setup check format lint layers types test test-all test-matrix test-roles test-sizes test-pooler faults faults-locks nightly bench bench-docs bench-peers demo clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## Make a virtual environment with everything that development needs

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

check: lint layers types  ## Format, lint, layers and types

format: setup  ## Format the code and fix what the linter can fix
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

test: setup  ## The core in one environment: units, services on one driver, the worker, the examples (two minutes)
	$(BIN)/python -m pytest --level quick -n $(WORKERS)

test-all: setup  ## Everything that CI runs on one pair of versions
	$(BIN)/python -m pytest -n $(WORKERS)

# SQLAlchemy 2.0 and 2.1, with the PostgreSQL of the wheel and with an installed one, where there is one.
test-matrix: setup $(VENV20)/.ready  ## The tests marked `service` on the other pairs of versions
	$(VENV20)/bin/python -m pytest -n $(WORKERS) -m service $(ARGS)
	@if [ -n "$(DEBIAN_PG)" ]; then set -x; \
	  SA_DURABLE_PG_BIN=$(DEBIAN_PG) $(VENV20)/bin/python -m pytest -n $(WORKERS) -m service $(ARGS) && \
	  SA_DURABLE_PG_BIN=$(DEBIAN_PG) $(BIN)/python -m pytest -n $(WORKERS) -m service $(ARGS); \
	else echo 'No installed PostgreSQL found: the service tests ran on the wheel only.'; fi

# Variables given to make are in the environment: FAULTS_SEED=... repeats a run, SOAK=600 makes each load last so long.
faults: setup  ## Kill, freeze, disconnect and fill up servers and workers (FAULTS_SEED=1 SOAK=600)
	$(BIN)/python -m pytest tests/faults -p no:randomly $(ARGS)
	SA_DURABLE_LOCK_ORDER=wide $(BIN)/python -m pytest -n $(WORKERS) tests/races/test_lock_order.py

# Run once before an issue is closed; see CONTRIBUTING.md.
nightly: setup  ## Full products of tests, drivers and versions, more histories, roles, pooler and sizes (hours)
	$(BIN)/python -m pytest --level nightly -n $(WORKERS)
	$(MAKE) test-matrix ARGS="--level nightly"
	$(MAKE) faults-locks test-roles test-pooler test-sizes

# SOAK=1 draws a quarter of some 60,000 overlaps by FAULTS_SEED; SA_DURABLE_LOCK_SHARE=1 runs all of them, for hours.
faults-locks: setup  ## All operations on a task overlap; random histories against a model; fuzzing (SOAK=1: more)
	SA_DURABLE_LOCK_ORDER=$(if $(SOAK),full,wide) SA_DURABLE_LOCK_SHARE=$(or $(SA_DURABLE_LOCK_SHARE),$(if $(SOAK),0.25,1)) $(BIN)/python -m pytest -n $(WORKERS) tests/races/test_lock_order.py tests/races/test_lock_order_of_keys.py
	HYPOTHESIS_PROFILE=soak SA_DURABLE_LIVES=$(if $(SOAK),300,60) $(BIN)/python -m pytest -n $(WORKERS) --level nightly tests/stateful $(if $(SOAK),tests/fuzzing)

test-roles: setup  ## Services and runtime with the roles of docs/operations/roles.sql and no other rights
	SA_DURABLE_TEST_ROLES=1 $(BIN)/python -m pytest -n $(WORKERS) -m 'not owner' tests/services tests/runtime

test-sizes: setup  ## 1,000 races, 200 kills of each kind, an upgrade of 500,000 rows under load
	SA_DURABLE_RACES=1000 $(BIN)/python -m pytest -n $(WORKERS) --level nightly tests/races/test_cascades.py tests/races/test_waking.py
	SA_DURABLE_KILLS=200 $(BIN)/python -m pytest -n $(WORKERS) --level nightly tests/runtime/test_killed_transactions.py
	SA_DURABLE_UPGRADE_ROWS=500000 $(BIN)/python -m pytest -n 0 -s --level nightly tests/migrations/test_under_load.py

test-pooler: setup  ## Services and runtime through PgBouncer in transaction mode, two connections a database
	$(BIN)/python -m pytest -p tests.faults.through_pooler -n $(WORKERS) tests/services tests/runtime

bench: setup  ## Measure each operation beside its limit (ARGS="--list", "--only 7", "--quick", ...)
	$(BIN)/python -m tests.bench $(ARGS)

bench-docs: setup  ## The same, and write docs/benchmarks: tables, chart and JSON
	$(BIN)/python -m tests.bench --json docs/benchmarks/results.json $(ARGS)
	$(BIN)/python -m tests.bench.documents

# Their environments are made in .venvs/peers, from the pinned versions in tests/bench/peers/requirements.
bench-peers: setup  ## The same workloads for the peers and sa_durable (ARGS="--only drain", ...)
	$(BIN)/python -m tests.bench.peers $(ARGS)

demo: setup  ## Run the demo: webhook deliveries, four spawners, a worker, two kill -9
	$(BIN)/python -m sa_durable.demo $(ARGS)

clean:  ## Remove the virtual environments and caches
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
