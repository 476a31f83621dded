"""No index is there for nothing: each is used by the statements that its comment names (tests/plans/test_*_plans.py)."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sa_durable.models import tables
from tests.plans import test_run_plans, test_sweep_plans, test_wait_plans
from tests.plans.explaining import Case
from tests.shop import BillingTask, MailTask

CASES: list[Case] = [
    *test_run_plans.CASES,
    *test_sweep_plans.IDLE,
    *test_sweep_plans.BUSY,
    *test_sweep_plans.KIN,
    *test_wait_plans.IDLE,
    *test_wait_plans.BUSY,
    *test_wait_plans.CASES,
]
ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((), {"notify": False}),
    (("mail",), {}),
    (((MailTask,),), {}),
]


def built(module: str, function: str) -> Iterator[Any]:
    """Statements are built once per arguments: this finds those of the cases."""
    build = getattr(importlib.import_module(f"sa_durable.statements.{module}"), function)
    for model in (MailTask, BillingTask):
        for positional, named in ARGUMENTS:
            for first in (model, (model,)):  # a queue, or several
                with suppress(TypeError, AttributeError):
                    yield build(first, *positional, **named)


def comments() -> dict[tuple[str, str], str]:
    """The comment above each Index in tables.py, by role of the table and suffix of the index's name."""
    lines = Path(tables.__file__).read_text().splitlines()
    found = {}
    for function in ast.parse("\n".join(lines)).body:
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Index":
                role = {"task_args": "tasks"}.get(function.name, function.name.strip("_"))
                found[role, ast.literal_eval(node.args[0].args[2])] = lines[node.lineno - 2].strip()
    return found


def promises() -> Iterator[tuple[str, str, str, str]]:
    for (role, index), comment in comments().items():
        for module, function, others in re.findall(r"statements\.(\w+)\.(\w+)((?:, [a-z_]+\b)*)", comment):
            for name in (function, *re.findall(r"[a-z_]+", others)):
                yield role, index, module, name


SPAWNING = {("tasks", "key")}  # tests/plans/test_spawn_plans.py


def test_every_index_names_the_statements_that_it_serves():
    named = {
        tuple(index.name.split("_durable_mail_")[1].split("_"))
        for table in MailTask.metadata.tables.values()
        for index in table.indexes
        if table.name.startswith("durable_mail_")
    }
    assert comments().keys() == named
    assert {(role, index) for role, index, _, _ in promises()} == named


@pytest.mark.parametrize(
    ("role", "index", "module", "function"), [p for p in promises() if p[:2] not in SPAWNING]
)
def test_a_statement_that_an_index_names_is_explained_and_uses_it(role, index, module, function):
    statements = list(built(module, function))
    assert statements
    using = [name for case in CASES if any(case.statement is s for s in statements) for name in case.uses]
    assert any(name.endswith(f"_{role}_{index}") for name in using)
