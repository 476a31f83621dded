"""A queue is one class on the application's Base: its tables, its siblings, and which classes are refused."""

from __future__ import annotations

import ast
import inspect as python_inspect
import pickle
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Index,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    inspect,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    configure_mappers,
    declared_attr,
    mapped_column,
    registry,
)
from sqlalchemy.schema import CreateIndex, CreateTable

import sa_durable
from sa_durable import (
    DeclarationError,
    Durable,
    DurableTask,
    KeyedObject,
    UnknownQueue,
)
from sa_durable.models import queue_of, queues_beside, siblings, task
from sa_durable.models.declare import RESERVED
from sa_durable.models.names import COMMENT_PATTERN, MAX_QUEUE_LENGTH
from sa_durable.models.tables import task_columns
from tests.shop import BillingTask, MailTask, Order, charge

SOURCE = Path(sa_durable.__file__).parent
LONGEST = "q" * MAX_QUEUE_LENGTH


def _base(**attributes):
    """A fresh Base, so that each test has a metadata of its own."""
    return type("Base", (DeclarativeBase,), attributes)


def _queue(name, base=None, **attributes):
    return _declare("SomeTask", name, base or _base(), **attributes)


def _declare(class_name, name, base, **attributes):
    return type(class_name, (DurableTask, base), {"__queue__": name, **attributes})


# Names


def _names(metadata):
    for table in metadata.tables.values():
        yield table.name
        yield from (c.name for c in table.c)
        yield from (i.name for i in table.indexes)
        preparer = postgresql.dialect().identifier_preparer
        yield from (preparer.format_constraint(c) for c in table.constraints if c.name)


@pytest.mark.parametrize(
    "convention",
    [
        {},
        {
            "pk": "pk_%(table_name)s",
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        },
    ],
)
def test_every_name_of_the_longest_queue_is_postgresqls_own(convention):
    base = _base(metadata=MetaData(naming_convention=convention))
    _queue(LONGEST, base)
    assert [name for name in _names(base.metadata) if len(name.encode()) > 63] == []


def test_implicit_names_of_the_longest_queue_are_not_cut_to_one(engine):
    base = _base()
    _queue(LONGEST, base)
    with engine.connect() as connection:
        base.metadata.create_all(connection)
        found = connection.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE relname LIKE %s ESCAPE '!'", (f"%{LONGEST}%",)
        ).scalars()
        expected = {i.name for t in base.metadata.tables.values() for i in t.indexes}
        assert set(found) >= expected | {t for t in base.metadata.tables if LONGEST in t}


def test_names_do_not_follow_the_hosts_convention():
    convention = {"ix": "index_%(column_0_label)s", "ck": "check_%(table_name)s_%(constraint_name)s"}
    default, named = _base(), _base(metadata=MetaData(naming_convention=convention))

    def names(base):
        table = _queue("billing", base).__table__
        checks = (c for c in table.constraints if isinstance(c, CheckConstraint))
        return {i.name for i in table.indexes} | {c.name for c in checks}

    assert names(default) == names(named)


def test_five_tables_and_one_for_all_queues():
    base = _base()
    _declare("ATask", "a", base)
    _declare("BTask", "b", base)
    roles = ("tasks", "runs", "checkpoints", "events", "waits")
    assert set(base.metadata.tables) == {f"durable_{q}_{r}" for q in "ab" for r in roles} | {"durable_queues"}


@pytest.mark.parametrize(
    "name",
    ["", "Billing", "1a", "_a", "a-b", "a b", "a.b", "é", "a\n", "a;drop", LONGEST + "q", None, 7, b"a"],
)
def test_name_that_a_queue_can_not_have_is_refused(name):
    base = _base()
    with pytest.raises(DeclarationError, match=re.escape(f"SomeTask.__queue__ = {name!r}: a queue's name")):
        _queue(name, base)
    assert not base.metadata.tables


@pytest.mark.parametrize("name", ["a", "a1_", LONGEST, "select", "runs"])
def test_name_that_a_queue_can_have(name):
    assert _queue(name).__table__.name == f"durable_{name}_tasks"


def test_tables_are_recognised_by_info_and_comment():
    for model, role in [
        (BillingTask, "tasks"),
        (BillingTask.Run, "runs"),
        (BillingTask.Checkpoint, "checkpoints"),
        (BillingTask.Event, "events"),
        (BillingTask.Wait, "waits"),
    ]:
        assert model.__table__.info["sa_durable"] == {"queue": "billing", "role": role}
        assert model.__table__.comment == f"sa_durable:billing:{role}"
    assert BillingTask.Queue.__table__.info["sa_durable"] == {"role": "queues"}
    assert BillingTask.Queue.__table__.comment == "sa_durable::queues"


def test_every_task_table_is_found_by_its_comment(engine):
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE obj_description(oid, 'pg_class') LIKE %s", (COMMENT_PATTERN,)
        )
        assert set(found.scalars()) == {"durable_billing_tasks", "durable_mail_tasks"}


# What can't be a queue


def test_second_class_for_a_queue_is_refused():
    base = _base()
    _queue("billing", base)
    with pytest.raises(DeclarationError, match="queue 'billing' has a class already on this metadata"):
        _queue("billing", base)


def test_queue_of_the_same_name_on_another_base_or_schema_is_fine():
    base = _base()
    other = _declare("OtherTask", "billing", base, __table_args__={"schema": "other"})
    assert _queue("billing", base).__table__ is not other.__table__
    assert _queue("billing", _base()).__table__.name == "durable_billing_tasks"


def test_base_comes_after_durable_task():
    with pytest.raises(
        DeclarationError, match=r"DurableTask comes before the Base: class Wrong\(DurableTask, Base\)"
    ):
        type("Wrong", (_base(), DurableTask), {"__queue__": "billing"})


def test_queue_without_a_base_is_refused():
    with pytest.raises(
        DeclarationError, match="Wrong must also inherit your DeclarativeBase, after DurableTask"
    ):
        type("Wrong", (DurableTask,), {"__queue__": "billing"})


def test_legacy_declarative_base_is_refused():
    with pytest.raises(DeclarationError, match="must also inherit your DeclarativeBase"):
        type("Wrong", (DurableTask, registry().generate_base()), {"__queue__": "billing"})


def test_model_without_a_queue_is_refused():
    with pytest.raises(DeclarationError, match="Wrong needs a queue: __queue__ ="):
        type("Wrong", (DurableTask, _base()), {})


def test_abstract_class_between_is_no_queue():
    class Audited(DurableTask):
        __abstract__ = True
        by: Mapped[str | None] = mapped_column(String(20))

    class SomeTask(Audited, _base()):
        __queue__ = "audited"

    assert SomeTask.__table__.c.by.type.length == 20
    with pytest.raises(UnknownQueue):
        queue_of(Audited)


@pytest.mark.parametrize("column", ["id", "state", "idempotency_key", "token"])
def test_column_of_the_librarys_is_not_to_be_declared_again(column):
    with pytest.raises(
        DeclarationError,
        match=f"SomeTask: columns of sa_durable have the same names: {column}. Rename yours.",
    ):
        _queue("billing", **{column: mapped_column(String())})
    with pytest.raises(
        DeclarationError,
        match=f"SomeTask: columns of sa_durable have the same names: {column}. Rename yours.",
    ):
        _queue("billing", __annotations__={column: Mapped[str]})


@pytest.mark.parametrize("name", ["runs", "handler", "Run", "Checkpoint", "Event", "Wait", "Queue"])
def test_attribute_that_a_queue_has_is_not_to_be_declared_as_a_column(name):
    message = f"SomeTask: .* of sa_durable have the same names: {name}. Rename yours."
    with pytest.raises(DeclarationError, match=message):
        _queue("billing", **{name: mapped_column(String())})
    with pytest.raises(DeclarationError, match=message):
        _queue("billing", __annotations__={name: Mapped[str]})


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_name_that_later_versions_need_is_reserved(name):
    base = _base()
    message = f"SomeTask: these names are reserved for later versions of sa_durable: {name}. Rename yours."
    with pytest.raises(DeclarationError, match=message):
        _queue("billing", base, **{name: mapped_column(String())})
    with pytest.raises(DeclarationError, match=message):
        _queue("billing", base, __annotations__={name: Mapped[str]})
    assert not base.metadata.tables


def test_reserved_names_are_not_in_use():
    assert not RESERVED & {*task_columns(), *dir(BillingTask)}


def test_reserved_attributes_of_a_base_are_its_own():
    class Base(DeclarativeBase):
        release = "2026-11"

        def signal(self) -> None: ...

    model = type("SomeTask", (DurableTask, Base), {"__queue__": "billing"})
    assert model.release == "2026-11"


class _Scheduled:
    schedule: Mapped[str | None] = mapped_column(String(20))


@pytest.mark.parametrize(
    ("mixins", "own"),
    [
        ((_Scheduled,), {}),
        ((), {"plan": mapped_column("schedule", String())}),
        ((), {"__table_args__": (Column("schedule", String()),)}),
    ],
    ids=["a mixin's", "under another attribute", "in __table_args__"],
)
def test_reserved_column_is_refused_wherever_it_is_declared(mixins, own):
    with pytest.raises(DeclarationError, match="reserved for later versions of sa_durable: schedule"):
        type("SomeTask", (DurableTask, *mixins, _base()), {"__queue__": "billing", **own})


@pytest.mark.parametrize("args", [[Index("x", "label")], "x", 7])
def test_table_args_must_be_a_tuple_or_mapping(args):
    with pytest.raises(DeclarationError, match=r"__table_args__ = .* is neither a tuple nor a mapping"):
        _queue("billing", __table_args__=args)


@pytest.mark.parametrize("other", [Order, DurableTask, BillingTask.Run, "billing", None, 7, charge])
def test_what_is_no_queue_is_refused_where_one_is_needed(other):
    with pytest.raises(UnknownQueue, match="is no queue: pass a DurableTask class with __queue__"):
        queue_of(other)


def test_handlers_are_for_queues():
    with pytest.raises(DeclarationError, match="DurableTask is no queue"):
        DurableTask.handler()


# The application's own part


def test_own_columns_are_between_the_tasks_and_the_keys():
    columns = BillingTask.__table__.c.keys()
    assert columns[0] == "id"
    assert columns[-4:] == ["order_id", "idempotency_key", "key_hold", "key_expires_at"]


@pytest.mark.parametrize("as_tuple", [True, False])
def test_own_table_args_are_added_to_the_librarys(as_tuple):
    options = {"schema": "app", "info": {"mine": 1}}
    args = (UniqueConstraint("label"), Index("ix_label", "label"), options) if as_tuple else options

    class SomeTask(DurableTask, _base()):
        __queue__ = "billing"
        __table_args__ = args
        label: Mapped[str]

    table = SomeTask.__table__
    assert table.schema == SomeTask.Run.__table__.schema == SomeTask.Queue.__table__.schema == "app"
    assert table.info == {"mine": 1, "sa_durable": {"queue": "billing", "role": "tasks"}}
    assert "uq_durable_billing_tasks_key" in {i.name for i in table.indexes}
    assert ("ix_label" in {i.name for i in table.indexes}) is as_tuple
    assert any(isinstance(c, UniqueConstraint) for c in table.constraints) is as_tuple
    assert [f.target_fullname for f in SomeTask.Run.__table__.foreign_keys] == [
        "app.durable_billing_tasks.id"
    ]


def test_applications_own_comment_does_not_hide_the_queue():
    with suppress(DeclarationError):  # refusing it would do as well
        model = _queue("billing", __table_args__={"comment": "my own words"})
        assert "sa_durable:billing:tasks" in model.__table__.comment


def test_columns_that_a_base_adds_stay_out_of_the_librarys_tables():
    class Base(DeclarativeBase):
        @declared_attr
        def tenant(cls) -> Mapped[int]:  # noqa: N805 - a declared_attr is given the class
            return mapped_column()

    model = _queue("billing", Base)
    assert "tenant" in model.__table__.c
    assert "tenant" not in model.Run.__table__.c


def test_dataclass_base_takes_the_applications_columns_only():
    class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
        pass

    class SomeTask(DurableTask, Base):
        __queue__ = "billing"
        label: Mapped[str]

    assert SomeTask(label="x").label == "x"
    assert list(python_inspect.signature(SomeTask).parameters) == ["label"]


def test_schema_of_the_metadata_is_the_queues():
    model = _queue("billing", _base(metadata=MetaData(schema="app")))
    assert {table.schema for table in model.metadata.tables.values()} == {"app"}


def test_queues_of_a_base_share_the_table_of_queues():
    assert BillingTask.Queue is MailTask.Queue
    assert list(queues_beside(MailTask)) == [BillingTask, MailTask]


def test_handlers_and_tables_of_another_base_are_apart():
    model = _queue("billing")
    assert (model.__handlers__, list(queues_beside(model))) == ({}, [model])


def test_mappers_configure():
    configure_mappers()
    assert inspect(BillingTask).relationships.keys() == ["order", "runs"]
    assert inspect(BillingTask.Run).relationships.keys() == ["task"]


# Annotations for type checkers


@cache
def _annotations(module, cls):
    """The names that a class annotates for type checkers, with the annotation's source."""
    tree = ast.parse(Path(module.__file__).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    (block,) = (n for n in found.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in block.body
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation)
    }


def test_annotations_of_a_task_are_its_columns_in_their_order():
    assert list(_annotations(task, "DurableTask")) == [*task_columns(), "runs"]


@pytest.mark.parametrize(
    "name, model, relationships",
    [
        ("DurableRun", BillingTask.Run, ["task"]),
        ("DurableCheckpoint", BillingTask.Checkpoint, []),
        ("DurableEvent", BillingTask.Event, []),
        ("DurableWait", BillingTask.Wait, []),
        ("DurableQueue", BillingTask.Queue, []),
    ],
)
def test_annotations_of_a_sibling_are_its_columns_in_their_order(name, model, relationships):
    assert list(_annotations(siblings, name)) == [*model.__table__.c.keys(), *relationships]


@pytest.mark.parametrize(
    "module, name, model",
    [
        (task, "DurableTask", MailTask),
        (siblings, "DurableRun", BillingTask.Run),
        (siblings, "DurableCheckpoint", BillingTask.Checkpoint),
        (siblings, "DurableEvent", BillingTask.Event),
        (siblings, "DurableWait", BillingTask.Wait),
        (siblings, "DurableQueue", BillingTask.Queue),
    ],
)
def test_annotations_say_which_columns_may_be_null_and_their_types(module, name, model):
    annotations = _annotations(module, name)
    for column in model.__table__.c:
        annotation = annotations[column.key].removeprefix("Mapped[").removesuffix("]")
        if annotation == "Json":  # JSON's own null is a value
            continue
        assert ("| None" in annotation) == column.nullable, column
        expected = "dict" if isinstance(column.type, postgresql.JSONB) else column.type.python_type.__name__
        assert annotation.removesuffix(" | None").split("[")[0] == expected, column


# Indexes


def test_no_index_holds_what_heartbeats_change():
    held = {"lease_expires_at", "token", "claimed_by"}
    for index in MailTask.__table__.indexes:
        assert not held & set(index.columns.keys())
        assert not any(column in str(index.dialect_options["postgresql"]["where"]) for column in held)


@pytest.mark.parametrize("model", [BillingTask, MailTask])
def test_tables_are_stock_sql_without_parameters(model):
    dialect = postgresql.dialect()
    for table in model.metadata.tables.values():
        for ddl in (CreateTable(table), *map(CreateIndex, table.indexes)):
            assert "%(" not in str(ddl.compile(dialect=dialect))
        assert isinstance(table, Table)


# Rows


def test_rows_pickle():
    row = BillingTask.Run(id=UUID(int=1), attempt=2)
    other = pickle.loads(pickle.dumps(row))
    assert (type(other), other.id, other.attempt) == (BillingTask.Run, UUID(int=1), 2)
    task_row = pickle.loads(pickle.dumps(charge.task(order_id=7)))
    assert (type(task_row), task_row.params) == (BillingTask, {"order_id": 7})
    for model in (BillingTask.Checkpoint, BillingTask.Event, BillingTask.Wait, BillingTask.Queue):
        assert pickle.loads(pickle.dumps(model)) is model


def test_siblings_are_kinds_of_what_the_package_names():
    assert issubclass(BillingTask.Run, sa_durable.DurableRun)
    assert issubclass(BillingTask.Checkpoint, sa_durable.DurableCheckpoint)
    assert issubclass(BillingTask.Event, sa_durable.DurableEvent)
    assert issubclass(BillingTask.Wait, sa_durable.DurableWait)
    assert issubclass(BillingTask.Queue, sa_durable.DurableQueue)
    assert BillingTask.Run is not MailTask.Run


def test_rows_have_a_short_form():
    made = charge.task(order_id=7)
    made.state = "pending"
    assert repr(made) == f"<BillingTask charge {made.id} pending>"
    assert repr(BillingTask.Queue(name="billing")) == "<BillingTask.Queue billing>"


def test_key_is_not_to_be_set_on_an_object():
    made = charge.task(order_id=7)
    with pytest.raises(KeyedObject, match=r"idempotency_key='k' was set on a BillingTask object.*spawn"):
        made.idempotency_key = "k"
    with pytest.raises(KeyedObject):
        BillingTask(idempotency_key="k")
    made.idempotency_key = None


def test_handler_that_is_always_keyed_makes_no_objects():
    model = _queue("billing")

    @model.handler(only_once=True)
    def work(ctx): ...

    with pytest.raises(KeyedObject, match="only_once by default"):
        work.task()


def test_object_without_a_handler_has_the_databases_defaults(session):
    made = BillingTask(name="charge", params={"order_id": 7})
    session.add(made)
    session.flush()
    session.refresh(made)
    assert (made.state, made.priority, made.attempt, made.max_attempts, made.token) == ("pending", 0, 1, 5, 0)
    assert made.id.version == made.run_id.version == 7
    assert made.available_at == made.created_at > datetime(2020, 1, 1, tzinfo=UTC)


def test_history_is_read_from_both_sides(session):
    spawned = Durable(session).spawn(charge.call(order_id=7))
    run = BillingTask.Run(id=spawned.run_id, task_id=spawned.task_id, attempt=1, state="failed")
    session.add(run)
    session.flush()
    assert spawned.task.runs == [run]
    assert run.task is spawned.task
    assert session.scalars(select(BillingTask).join(BillingTask.runs)).all() == [spawned.task]


def test_task_of_the_first_spawn_of_a_process_is_an_object(server_url):
    program = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sa_durable import Durable
from tests.shop import Base, charge
with create_engine(sys.argv[1]).connect() as connection:
    Base.metadata.create_all(connection)
    with Session(connection) as session:
        print(Durable(session).spawn(charge.call(order_id=7)).task.state)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, server_url],
        cwd=SOURCE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "pending\n", done.stderr
