"""Find the application that a command works for: its module, its queues, its database."""

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

queue_option = click.option(
    "--queue", "names", multiple=True, metavar="NAME", help="Only this queue. Can be repeated."
)
database_url_option = click.option(
    "--database-url",
    metavar="URL",
    help=f"Database URL. [default: {', then '.join(VARIABLES)}, then the module's `engine`]",
)


def load(name: str) -> ModuleType:
    """Import the application's module. The current directory comes first, as with `python -m`.

    Raises:
        click.UsageError: There is no such module.
    """
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise click.UsageError(f"no module {name!r} in {here} or on the Python path") from error
        raise  # the module exists, but one of its own imports is missing


def queues(module: ModuleType, names: Sequence[str]) -> list[type[DurableTask]]:
    """Return all declared queues, or those with the given names. Importing `module` has declared them.

    Raises:
        click.UsageError: No queue is declared, or one of the names is unknown.
    """
    known: dict[str, list[type[DurableTask]]] = {}
    for queue in _declared(DurableTask):
        known.setdefault(queue.__queue__, []).append(queue)
    if not known:
        raise click.UsageError(f"{module.__name__} declares no queue (a DurableTask class with __queue__)")
    if unknown := sorted(set(names) - known.keys()):
        raise click.UsageError(
            f"unknown queue: {', '.join(unknown)}. Declared queues: {', '.join(sorted(known))}"
        )
    return [queue for name in (names or sorted(known)) for queue in known[name]]


def _declared(base: type[DurableTask]) -> Iterator[type[DurableTask]]:
    for cls in base.__subclasses__():
        if "__handlers__" in cls.__dict__:
            yield cls
        yield from _declared(cls)


def database_url(module: ModuleType, url: str | None) -> Any:
    """Return the URL or engine of the database.

    Uses the first that is given of: the option, SA_DURABLE_DATABASE_URL, DATABASE_URL, the module's `engine`.

    Raises:
        click.UsageError: None is given.
    """
    for found in (url, *(os.environ.get(variable) for variable in VARIABLES)):
        if found:
            return found
    engine = getattr(module, "engine", None)
    if engine is None:
        raise click.UsageError(
            f"no database given. Use --database-url, set {' or '.join(VARIABLES)}, or define `engine` in "
            f"{module.__name__}"
        )
    return engine
