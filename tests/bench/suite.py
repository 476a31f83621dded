"""All workloads: a module of this folder with WORKLOADS is a part of the suite."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import tests.bench
from tests.bench.workload import Workload

HARNESS = {"__main__", "charting", "documents", "suite"}


def workloads() -> list[Workload]:
    """By the numbers of issue 5; those that have none come last."""
    found = [
        workload
        for module in pkgutil.iter_modules(tests.bench.__path__)
        if not module.ispkg and module.name not in HARNESS
        for workload in getattr(import_module(f"tests.bench.{module.name}"), "WORKLOADS", ())
    ]
    return sorted(found, key=lambda workload: workload.number or 1000)


def chosen(among: list[Workload], only: str) -> list[Workload]:
    """Those that `only` names: numbers with commas between them ("1,7"), or a part of a name. Empty: all."""
    if only.replace(",", "").isdigit():
        return [w for w in among if w.number in {int(number) for number in only.split(",") if number}]
    return [w for w in among if only.lower() in w.name.lower()]
