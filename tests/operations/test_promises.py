"""The page of promises names tests that exist, and the page of failures the words that are logged."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "docs/guarantees.md",
    ROOT / "docs/fault-runs.md",
    *sorted((ROOT / "docs/operations").glob("*.md")),
]


@lru_cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).exists(), path
        assert not name or name in functions_of(path), f"{path}::{name}"


def test_every_promise_names_a_test():
    promises, _ = PAGES[0].read_text().split("## What is not promised")
    rows = re.findall(r"^\| (?!Promise)(\w.*?) \| (.*) \|$", promises, re.MULTILINE)
    assert len(rows) > 40
    assert [promise for promise, proof in rows if "`tests/" not in proof] == []


SHOWN = re.compile(r"^    (?:DEBUG|INFO|WARNING|ERROR) +(.*)$", re.MULTILINE)


def strings_of_the_code() -> set[str]:
    """Every string of the package, with `{}` for what is filled in."""
    found = set()
    for path in (ROOT / "sa_durable").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add(
                    "".join(
                        getattr(part, "value", "{}") if isinstance(part, ast.Constant) else "{}"
                        for part in node.values
                    )
                )
    return found


FILLED = re.compile(r"%(?:\.\d)?[a-z]|\{\}")


def test_every_log_line_that_is_shown_is_one_that_the_code_writes():
    strings = strings_of_the_code()
    shapes = [
        re.compile(".*".join(map(re.escape, FILLED.split(string))) + "$")
        for string in strings
        if len(FILLED.sub("", string)) > 8  # of some words of its own
    ]
    lines = SHOWN.findall((ROOT / "docs/operations/failure-modes.md").read_text())
    assert len(lines) > 20
    assert [line for line in lines if not any(shape.match(line) for shape in shapes)] == []
