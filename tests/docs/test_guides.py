"""Every piece of Python in the guides runs, from the top of its page to the bottom, against a database of its own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sa_durable import telemetry
from tests.databases import throwaway, url_of
from tests.docs import pages

GUIDES = Path(__file__).parents[2] / "docs/guides"
ELSEWHERE = {"migrations.md"}  # pieces of an env.py and of revisions: tests/migrations runs them


@pytest.fixture
def as_before():
    """What pages change in this process is undone: how much is logged, and hooks."""
    logger = logging.getLogger("sa_durable")
    level, hooks = logger.level, (telemetry.spawn_hooks[:], telemetry.run_hooks[:])
    yield
    logger.setLevel(level)
    telemetry.spawn_hooks[:], telemetry.run_hooks[:] = hooks


def test_the_queries_of_the_page_about_monitoring_run(server_url, as_before):
    with throwaway(server_url) as engine:
        pages.run(GUIDES.parent / "operations/monitoring.md", engine=engine)


@pytest.mark.parametrize(
    "page", sorted({path.name for path in GUIDES.glob("*.md")} - ELSEWHERE), ids=lambda name: name
)
def test_a_guide_does_what_it_says(server_url, as_before, page):
    with throwaway(server_url) as engine:
        pages.run(GUIDES / page, engine=engine, DATABASE_URL=url_of(engine))
