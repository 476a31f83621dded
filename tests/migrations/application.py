"""The small host applications under hosts/, each with its own migrations in a temporary directory."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData

from tests.migrations.host import ROOT, execute, url_for

HOSTS = Path(__file__).parent / "hosts"


class Application:
    """A host application on a database. Replace `metadata` to get another release of the application."""

    def __init__(self, name: str, engine: Engine, directory: Path) -> None:
        self.engine, self.directory = engine, directory
        self.models: Any = importlib.import_module(f"tests.migrations.hosts.{name}.models")
        self.metadata: MetaData = self.models.Base.metadata
        (directory / "versions").mkdir(parents=True)
        shutil.copy(HOSTS / name / "env.py", directory)
        shutil.copy(ROOT / "alembic" / "script.py.mako", directory)

    @property
    def config(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(self.directory))
        config.set_main_option("sqlalchemy.url", url_for(self.engine).replace("%", "%%"))
        config.attributes["metadata"] = self.metadata
        return config

    def revise(self) -> str:
        """Run `alembic revision --autogenerate`. Returns the revision's text."""
        script: Any = command.revision(self.config, autogenerate=True)
        return Path(script.path).read_text()

    def upgrade(self) -> None:
        command.upgrade(self.config, "head")

    def downgrade(self) -> None:
        command.downgrade(self.config, "-1")

    def check(self) -> None:
        """Run `alembic check`, which raises if autogenerate would find a difference."""
        command.check(self.config)

    def head(self) -> str | None:
        return ScriptDirectory.from_config(self.config).get_current_head()

    def execute(self, *statements: str) -> None:
        execute(self.engine, *statements)


def body(script: str, function: str) -> list[str]:
    """Return the lines of a revision's upgrade or downgrade, stripped, without comments."""
    text = script.partition(f"def {function}() -> None:")[2].partition("\ndef ")[0]
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", '"""'))]
