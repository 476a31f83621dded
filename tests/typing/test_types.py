"""The applications beside this file are what mypy --strict and pyright think they are: `assert_type` holds, mistakes are found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

pytestmark = pytest.mark.skipif(
    sqlalchemy.__version__.startswith("2.0."), reason="rows are spelt otherwise: types are checked on 2.1"
)
ROOT = Path(__file__).parents[2]
APPS = [str(Path("tests", "typing", name)) for name in ("app.py", "testing_helpers.py", "transactions.py")]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    # The packaged pyright is used as it is: without this it looks in the network whether there is a newer one.
    env = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def _pyright(*files: str) -> list[str]:
    done = _run(sys.executable, "-m", "pyright", "--outputjson", *files)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(files), done.stdout + done.stderr
    return [f"{d['range']['start']['line'] + 1}: {d['message']}" for d in report["generalDiagnostics"]]


def test_mypy_strict_finds_the_types_and_the_mistakes_of_an_application() -> None:
    done = _run(sys.executable, "-m", "mypy", "--strict", *APPS)
    assert done.stdout.startswith("Success: no issues found in 3 source files"), done.stdout + done.stderr


def test_pyright_finds_the_types_and_the_mistakes_of_an_application() -> None:
    assert _pyright(*APPS) == []
