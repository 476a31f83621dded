"""The application that a command works for: its module, its queues, its database."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import click

from ..models import DurableTask

VARIABLES = ("SA_DURABLE_DATABASE_URL", "DATABASE_URL")


def load(name: str) -> ModuleType:
    """Import the application's module; the current directory comes first, as with `python -m`."""
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise click.UsageError(f"there is no module {name!r} in {here} or on the path") from error
        raise  # the module is there, and lacks something itself


def queues(module: ModuleType, names: Sequence[str]) -> list[type[DurableTask]]:
    """The queues that are declared once `module` is imported, or those of `names`."""
    known: dict[str, list[type[DurableTask]]] = {}
    for queue in _declared(DurableTask):
        known.setdefault(queue.__queue__, []).append(queue)
    if not known:
        raise click.UsageError(f"{module.__name__} declares no queue: no DurableTask class with __queue__")
    if unknown := sorted(set(names) - known.keys()):
        raise click.UsageError(f"no queue called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [queue for name in (names or sorted(known)) for queue in known[name]]


def _declared(base: type[DurableTask]) -> Iterator[type[DurableTask]]:
    for cls in base.__subclasses__():
        if "__handlers__" in cls.__dict__:
            yield cls
        yield from _declared(cls)


def database_url(module: ModuleType, url: str | None) -> Any:
    """The database's URL or engine: the option, SA_DURABLE_DATABASE_URL, DATABASE_URL, or the module's `engine`."""
    for found in (url, *(os.environ.get(variable) for variable in VARIABLES)):
        if found:
            return found
    engine = getattr(module, "engine", None)
    if engine is None:
        raise click.UsageError(
            f"which database? Give --database-url, set {' or '.join(VARIABLES)}, or name an engine `engine` in "
            f"{module.__name__}"
        )
    return engine
