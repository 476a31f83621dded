"""Running the Python of a page as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# What readers see, and what they don't: models, stand-ins and assertions in `<!-- python ... -->`.
SNIPPET = re.compile(r"^(?:```|<!-- )python\n(.*?)^(?:```|-->)", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> Iterator[str]:
    """The Python of a page, each piece on the lines that it has there."""
    content = page.read_text()
    for found in SNIPPET.finditer(content):
        yield "\n" * content.count("\n", 0, found.start(1)) + found[1]


def run(page: Path, **names: Any) -> ModuleType:
    """Run a page from top to bottom, as one module that has `names` before."""
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    module.__dict__.update(names)
    sys.modules[module.__name__] = module  # annotations are looked up there
    for code in snippets(page):
        exec(compile(code, str(page), "exec", dont_inherit=True), module.__dict__)
    return module
