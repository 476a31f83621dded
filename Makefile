# `make test` on a machine that has only Python 3.11 (or later) and make sets itself up and runs everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The other end of the support matrix: the oldest SQLAlchemy series, with a PostgreSQL that is installed here.
VENV20 := .venvs/sqlalchemy20
DEBIAN_PG := $(firstword $(wildcard /usr/lib/postgresql/15/bin /usr/lib/postgresql/*/bin))
WORKERS ?= 2

.PHONY: help setup check format lint types layers test test-matrix bench demo docs clean

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

test: setup test-full test-matrix  ## The full suite on SQLAlchemy 2.1 and the wheel's PostgreSQL, the services on the rest

.PHONY: test-full
test-full: setup
	$(BIN)/python -m pytest -n $(WORKERS)

# The service tests on the pairs that the full suite didn't run on.
test-matrix: setup $(VENV20)/.ready
	$(VENV20)/bin/python -m pytest -n $(WORKERS) -m service
	@if [ -n "$(DEBIAN_PG)" ]; then set -x; \
	  SA_DURABLE_PG_BIN=$(DEBIAN_PG) $(BIN)/python -m pytest -n $(WORKERS) -m service && \
	  SA_DURABLE_PG_BIN=$(DEBIAN_PG) $(VENV20)/bin/python -m pytest -n $(WORKERS) -m service; \
	else echo 'No installed PostgreSQL found: the service tests ran on the wheel only.'; fi

bench: setup  ## Ratios to what bare SQLAlchemy and psycopg do in the same run
	$(BIN)/python -m tests.bench $(ARGS)

demo: setup  ## Webhook deliveries, four spawners, a worker, two kill -9: each event is handled once
	$(BIN)/python -m sa_durable.demo $(ARGS)

clean:  ## Remove what setup made
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
