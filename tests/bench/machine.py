"""Where and when a run was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
import sqlalchemy
from sqlalchemy import Engine, text

import sa_durable

SETTINGS = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "autovacuum")


@dataclass(frozen=True)
class Machine:
    date: str
    commit: str
    processor: str
    cores: int
    memory_gb: float
    load: float  # of a minute, before anything was measured
    system: str
    versions: dict[str, str]
    settings: dict[str, str]  # of PostgreSQL

    def summary(self) -> str:
        """Return when and where the run began, for the page with its results."""
        return (
            f"{self.date}, commit {self.commit}: {self.cores} cores ({self.processor}), "
            f"{self.memory_gb:g} GB, {self.system}, load {self.load:g} before it began"
        )

    def settings_line(self) -> str:
        return ", ".join(f"{name} = {value}" for name, value in self.settings.items())


def this_machine(engine: Engine) -> Machine:
    with engine.connect() as connection:
        settings = {name: str(connection.scalar(text(f"SHOW {name}"))) for name in SETTINGS}
        server = str(connection.scalar(text("SHOW server_version")))
    return Machine(
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        commit=_commit(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        load=round(os.getloadavg()[0], 1),
        system=platform.system() + " " + platform.release(),
        versions={
            "sa_durable": sa_durable.__version__,
            "PostgreSQL": server,
            "Python": platform.python_version(),
            "SQLAlchemy": sqlalchemy.__version__,
            "psycopg": psycopg.__version__,
        },
        settings=settings,
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
