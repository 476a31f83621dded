"""The pages about the code name files, classes and functions that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md"]
PACKAGE = ROOT / "sa_durable"


@lru_cache
def names_of(path: Path) -> frozenset[str]:
    """The names that a module defines at its top: classes, functions and constants."""

    def names() -> Iterator[str]:
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    yield node.name
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    yield name

    return frozenset(names())


@pytest.mark.parametrize("page", PAGES)
def test_the_named_code_exists(page):
    content = (ROOT / page).read_text()
    for name, symbol in re.findall(r"`(?:sa_durable/)?([\w/]+\.py)(?:::(\w+))?`", content):
        paths = [ROOT / name, *PACKAGE.glob(f"**/{name}")]
        assert any(path.exists() for path in paths), f"{page} names {name}"
        if symbol:
            assert any(path.exists() and symbol in names_of(path) for path in paths), f"{name}::{symbol}"


def test_each_module_of_the_library_is_on_the_map():
    content = (ROOT / "docs/architecture.md").read_text()
    rooms = [PACKAGE, *(PACKAGE / name for name in ("values", "models", "services", "statements", "runtime"))]
    rooms += [room for room in (PACKAGE / "runtime").iterdir() if room.is_dir()]
    modules = {path.name for room in rooms for path in room.glob("*.py")} - {"__init__.py"}
    assert sorted(module for module in modules if f"`{module}`" not in content) == []
