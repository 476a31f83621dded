"""What the documentation says is what happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

import sa_durable
from sa_durable import testing
from sa_durable.values import TRANSITIONS
from tests.databases import throwaway, url_of
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def empty_url(server_url: str) -> Iterator[str]:
    with throwaway(server_url) as engine:
        yield url_of(engine)


def blocks(page: Path, language: str) -> list[str]:
    return [code for lang, code in BLOCK.findall(page.read_text()) if lang == language]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_quickstart_does_what_it_says(empty_url, tmp_path):
    page = (ROOT / "docs/quickstart.md").read_text()
    shop, create, spawn, again, look = blocks(ROOT / "docs/quickstart.md", "python")
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "quickstart.py").write_text(f"{create}\n{spawn}\n{again}\nprint(spawned.task_id)\n")
    environ = {**os.environ, "DATABASE_URL": empty_url, "PYTHONPATH": str(ROOT)}
    environ.pop("SA_DURABLE_DATABASE_URL", None)
    run = {"cwd": tmp_path, "env": environ, "text": True}
    task_id = subprocess.run(
        [sys.executable, "quickstart.py"], check=True, stdout=subprocess.PIPE, **run
    ).stdout.strip()

    assert "$ sa-durable worker shop --concurrency 20" in page
    command = [Path(sys.executable).with_name("sa-durable"), "worker", "shop", "--concurrency", "20"]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **run)
    engine = create_engine(empty_url)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            state = text("SELECT state FROM durable_billing_tasks")
            wait_until(lambda: connection.scalar(state) == "completed" or worker.poll() is not None)
    finally:
        engine.dispose()
        worker.send_signal(signal.SIGTERM)
        printed, logged = worker.communicate(timeout=120)
    assert worker.returncode == 0, logged
    assert printed == "order 7: charged 9.99\n"

    found = f"""
from uuid import UUID
from sqlalchemy.orm import Session
from sa_durable import Durable, SpawnResult, TaskState
from shop import BillingTask, engine
spawned = SpawnResult(UUID("{task_id}"), UUID("{task_id}"), 1, True, TaskState.PENDING, True, BillingTask)
"""
    (tmp_path / "look.py").write_text(found + look)
    subprocess.run([sys.executable, "look.py"], check=True, **run)


def test_the_readme_does_what_it_says(empty_url):
    (code,) = blocks(ROOT / "README.md", "python")
    names = {"DATABASE_URL": empty_url, "__name__": "readme"}
    exec(compile(code, "README.md", "exec", dont_inherit=True), names)  # its assertion is the test
    names["engine"].dispose()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_code_are_sound(page):
    content = page.read_text()
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", content):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}#{anchor}"
    for code in blocks(page, "python"):
        compile(code, str(page), "exec", dont_inherit=True)
    assert content.count("```") % 2 == 0


def test_the_state_diagram_is_the_table_of_transitions():
    lines = [
        f"    {before.value if before else '[*]'} --> {after.value}: {verb.value}"
        for (before, verb), afters in TRANSITIONS.items()
        for after in sorted(afters)
    ]
    shown = re.search(
        r"<!-- transitions -->\n\n```mermaid\nstateDiagram-v2\n(.*?)```",
        (ROOT / "docs/concepts.md").read_text(),
        re.DOTALL,
    )
    assert shown
    assert sorted(shown[1].splitlines()) == sorted(lines)


def test_every_public_name_is_documented():
    reference = (ROOT / "docs/reference/api.md").read_text()
    methods = [
        name
        for cls in (sa_durable.Durable, sa_durable.AsyncDurable, sa_durable.TaskContext)
        for name in dir(cls)
        if not name.startswith("_")
    ]
    names = {*sa_durable.__all__, *testing.__all__, *methods} - {"session"}
    assert sorted(name for name in names if f"`{name}`" not in reference) == []


def test_sync_and_async_wrappers_have_the_same_methods():
    for plain, other in (
        (sa_durable.Durable, sa_durable.AsyncDurable),
        (sa_durable.TaskContext, sa_durable.AsyncTaskContext),
    ):
        assert {name for name in dir(plain) if not name.startswith("_")} == {
            name for name in dir(other) if not name.startswith("_")
        }


def test_every_decision_is_numbered_once():
    numbers = [page.name[:4] for page in (ROOT / "docs/decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))
