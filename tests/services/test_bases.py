"""Every kind of Base that an application may have: tables are made, keys hold, batches and objects work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, MetaData, Text, delete, func, inspect, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    DeclarativeBaseNoMeta,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    registry,
    relationship,
)
from sqlalchemy.schema import CreateSchema

from sa_durable import Durable, DurableError, DurableTask, verify
from sa_durable.handlers import Handler
from sa_durable.services import claims, events, runs, waits
from sa_durable.services.execute import ensure_schema
from sa_durable.services.waits import AwaitedTasks
from sa_durable.values import Claim
from tests.apps import application
from tests.databases import throwaway
from tests.services.observed import statements

pytestmark = pytest.mark.service


@dataclass
class Application:
    """A Base and its queues, each with a handler `work(n)`."""

    metadata: MetaData
    queues: list[type[DurableTask]]
    options: dict[str, Any] = field(default_factory=dict)  # execution options of its engine
    schemas: tuple[str, ...] = ()
    columns: dict[str, Any] = field(default_factory=dict)  # of the application's own, for each spawn

    def handlers(self) -> list[Handler[Any, ..., Any]]:
        return [handler_of(queue) for queue in self.queues]


def handler_of(queue: type[DurableTask]) -> Handler[Any, ..., Any]:
    def work(ctx: object, n: int) -> int:
        return n

    return queue.handler()(work)


def plain() -> Application:
    base, *queues = application(First="first", Second="second")
    return Application(base.metadata, queues)


def without_metaclass() -> Application:
    class Base(DeclarativeBaseNoMeta):
        pass

    class Task(DurableTask, Base):
        __queue__ = "plain"

    return Application(Base.metadata, [Task])


def schema_of_the_metadata() -> Application:
    class Base(DeclarativeBase):
        metadata = MetaData(schema="app")

    class Task(DurableTask, Base):
        __queue__ = "billing"

    return Application(Base.metadata, [Task], schemas=("app",))


def schema_of_the_model() -> Application:
    """Two queues of one name, told apart by their schema."""

    class Base(DeclarativeBase):
        pass

    class Task(DurableTask, Base):
        __queue__ = "billing"

    class Other(DurableTask, Base):
        __queue__ = "billing"
        __table_args__ = {"schema": "Other App"}  # noqa: RUF012 - as SQLAlchemy's own documentation writes it

    return Application(Base.metadata, [Task, Other], schemas=("Other App",))


ODD = 'a "b" %s 100%% c.d:e\\f'  # what one driver or another, or text(), gives a meaning to


def odd_schema() -> Application:
    class Base(DeclarativeBase):
        metadata = MetaData(schema=ODD)

    class Task(DurableTask, Base):
        __queue__ = "billing"

    return Application(Base.metadata, [Task], schemas=(ODD,))


def translated_to_an_odd_schema() -> Application:
    application = plain()
    application.options = {"schema_translate_map": {None: ODD}}
    application.schemas = (ODD,)
    return application


def naming_convention() -> Application:
    """A convention for every kind of name, and the longest name that a queue can have."""
    convention = {
        "ix": "idx_%(column_0_label)s_of_a_convention",
        "uq": "unique_%(table_name)s_%(column_0_name)s",
        "ck": "check_%(table_name)s_%(constraint_name)s",
        "fk": "foreign_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "primary_%(table_name)s",
    }

    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=convention)

    class Task(DurableTask, Base):
        __queue__ = "q" * 32

    return Application(Base.metadata, [Task])


def schema_translate_map() -> Application:
    application = plain()
    application.options = {"schema_translate_map": {None: "Tenant 1"}}
    application.schemas = ("Tenant 1",)
    return application


def types_of_the_base() -> Application:
    class Base(DeclarativeBase):
        type_annotation_map = {str: Text(collation="C"), dict[str, Any]: Text()}  # noqa: RUF012 - as above

    class Task(DurableTask, Base):
        __queue__ = "typed"

    return Application(Base.metadata, [Task])


def dataclasses_base() -> Application:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Task(DurableTask, Base):
        __queue__ = "dataclass"
        tenant: Mapped[str | None] = mapped_column(default=None)
        tags: Mapped[str] = mapped_column(default="", kw_only=True)

    return Application(Base.metadata, [Task], columns={"tenant": "acme"})


def columns_of_the_base() -> Application:
    """Among them some that a queue has, too."""

    class Base(DeclarativeBase):
        id: Mapped[int] = mapped_column(primary_key=True)
        created_at: Mapped[datetime] = mapped_column(server_default=func.now())
        updated_at: Mapped[datetime] = mapped_column(default=func.now(), onupdate=func.now())
        tenant: Mapped[str] = mapped_column(Text(), default=lambda: "nobody")

    class Task(DurableTask, Base):
        __queue__ = "billing"
        note: Mapped[str | None] = mapped_column("a note")

    return Application(Base.metadata, [Task], columns={"note": "well"})


def parameter_names() -> Application:
    """Columns of the application that are called as something else of ours is."""

    class Base(DeclarativeBase):
        pass

    class Task(DurableTask, Base):
        __queue__ = "billing"
        delay: Mapped[int | None]
        run_at: Mapped[str | None]
        key: Mapped[str | None]
        key_ttl: Mapped[int | None]
        task_id: Mapped[str | None]
        position: Mapped[int | None]

    columns = {"delay": 5, "run_at": "noon", "key": "K", "key_ttl": 7, "task_id": "x", "position": 3}
    return Application(Base.metadata, [Task], columns=columns)


def joined_relationships() -> Application:
    """Rows that come with every task, with columns that are called as ours are."""

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        state: Mapped[str | None]
        idempotency_key: Mapped[str | None]
        key_hold: Mapped[str | None]
        first_started_at: Mapped[datetime | None]

    class Task(DurableTask, Base):
        __queue__ = "billing"
        order_id: Mapped[int | None] = mapped_column(ForeignKey(Order.id))
        order: Mapped[Order | None] = relationship(Order, lazy="joined")

    return Application(Base.metadata, [Task])


def shared_registry() -> Application:
    mapper_registry = registry(metadata=MetaData())

    class Base(DeclarativeBase):
        registry = mapper_registry
        metadata = mapper_registry.metadata

    class Mixin:
        note: Mapped[str | None]

        @property
        def shout(self) -> str:
            return (self.note or "").upper()

    class Task(Mixin, DurableTask, Base):
        __queue__ = "billing"

    return Application(Base.metadata, [Task], columns={"note": "well"})


APPLICATIONS: list[Callable[[], Application]] = [
    plain,
    without_metaclass,
    schema_of_the_metadata,
    schema_of_the_model,
    odd_schema,
    translated_to_an_odd_schema,
    naming_convention,
    schema_translate_map,
    types_of_the_base,
    dataclasses_base,
    columns_of_the_base,
    parameter_names,
    joined_relationships,
    shared_registry,
]


@contextmanager
def database(application: Application, server_url: str) -> Iterator[Engine]:
    with throwaway(server_url) as engine:
        with engine.begin() as connection:
            for schema in application.schemas:
                connection.execute(CreateSchema(schema))
        mapped = engine.execution_options(**application.options)
        application.metadata.create_all(mapped)
        yield mapped


@pytest.mark.parametrize("make", APPLICATIONS, ids=lambda make: make.__name__)
def test_a_queue_works_on_every_base(server_url, make):
    application = make()
    with database(application, server_url) as engine:
        for work in application.handlers():
            with Session(engine) as session, session.begin():
                uses(session, work, application)
        with engine.connect() as connection:
            assert verify(connection, application.metadata) == []


def uses(session: Session, work: Handler[Any, ..., Any], application: Application) -> None:
    durable, queue, columns = Durable(session), work.model, application.columns
    first = durable.spawn(work.call(1), idempotency_key="k", columns=columns)
    again = durable.spawn(work.call(2), idempotency_key="k")
    assert (again.created, again.task_id, again.params_match) == (False, first.task_id, False)
    found = durable.find_by_key(queue, "k")
    assert found is first.task
    assert {name: getattr(found, name) for name in columns} == columns

    later = durable.spawn(work.call(3), delay=timedelta(hours=1), columns=columns)
    assert later.state == "sleeping"
    batch = durable.spawn_many(
        [work.call(n).using(idempotency_key=f"k{n % 2}") for n in range(3)] + [work.call(9)],
        columns=columns,
    )
    assert [s.created for s in batch] == [True, True, False, True]
    assert {name: getattr(batch[0].task, name) for name in columns} == columns
    plainly = durable.spawn_many([work.call(n).using(idempotency_key=f"k{n}") for n in range(3)])
    assert [s.created for s in plainly] == [False, False, True]

    updated = durable.spawn(work.call(4), idempotency_key="k", on_duplicate="update", columns=columns)
    assert (updated.task_id, found.params) == (first.task_id, {"n": 4})
    assert durable.release_key(queue, "k1")
    assert durable.spawn(work.call(1), idempotency_key="k1").created
    replaced = durable.spawn(work.call(5), idempotency_key="k", on_duplicate="replace")
    assert replaced.created
    assert durable.result(first).state == "cancelled"

    added = work.task(6)
    session.add(added)
    session.flush()
    assert (added.state, added.params) == ("pending", {"n": 6})
    assert session.scalar(select(func.count()).select_from(queue)) == 9
    assert all(task.runs == [] for task in session.scalars(select(queue)).unique())


def test_same_named_queues_do_not_mistake_each_others_tasks_for_deleted(server_url):
    """A run waits for a task of its own queue, or of the other: a look for ends that nobody could tell marks nothing until
    it has ended."""
    application = schema_of_the_model()
    with database(application, server_url) as engine:
        [parent, other] = application.handlers()
        for child in (parent, other):
            waiter, active = (claimed(engine, work) for work in (parent, child))
            step, ends = "join", AwaitedTasks([(child.model, active.task_id)])
            for act in (
                waits.find_or_register,
                waits.find_or_register,
                waits.sleep,
            ):  # the first says what has to be done first
                with Session(engine) as session, session.begin():
                    options = {"timeout": None} if act is waits.find_or_register else {}
                    found = act(session, parent.model, waiter, step, ends, **options)
                for first in getattr(found, "first", ()):
                    with Session(engine) as session, session.begin():
                        first(session)
            assert found is None
            for marked, end in ((0, runs.complete), (1, None)):
                with Session(engine) as session, session.begin():
                    session.execute(delete(child.model.Event))  # nobody could tell
                    assert events.catch_up(session, parent.model, {}, limit=10).marked == marked
                    if end:
                        end(session, child.model, active, 7)


def claimed(engine: Engine, work: Handler[Any, ..., Any]) -> Claim:
    with Session(engine) as session, session.begin():
        Durable(session).spawn(work.call(1))
        options = {"names": ["work"], "worker": "w", "lease": timedelta(minutes=1), "limit": 1}
        [claim] = claims.claim(session, work.model, **options)
    return claim


def test_the_librarys_names_are_the_same_under_every_naming_convention(server_url):
    application = naming_convention()
    with database(application, server_url) as engine:
        seen = inspect(engine)
        tasks = f"durable_{'q' * 32}_tasks"
        names = {index["name"] for index in seen.get_indexes(tasks)}
        assert names == {
            f"uq_{tasks}_key",
            *(f"ix_{tasks}_{use}" for use in ("ready", "due", "running", "parent", "cancel", "finished")),
        }
        checks = {check["name"] for check in seen.get_check_constraints(tasks)}
        assert checks == {f"ck_{tasks}_state", f"ck_{tasks}_key"}


def test_queues_of_one_name_in_two_schemas_keep_their_keys_apart(server_url):
    application = schema_of_the_model()
    with database(application, server_url) as engine, Session(engine) as session:
        ours, others = application.handlers()
        durable = Durable(session)
        assert durable.spawn(ours.call(1), idempotency_key="k").created
        assert durable.spawn(others.call(1), idempotency_key="k").created
        assert [
            s.created for s in durable.spawn_many([ours.call(1), others.call(1)], idempotency_key="j")
        ] == [
            True,
            True,
        ]


def test_tenants_by_schema_keep_their_keys_apart(server_url):
    application = plain()
    application.schemas = ("one", "two")
    work = application.handlers()[0]
    with throwaway(server_url) as engine:
        for schema in ("one", "two"):
            with engine.begin() as connection:
                connection.execute(text(f"CREATE SCHEMA {schema}"))
            tenant = engine.execution_options(schema_translate_map={None: schema})
            application.metadata.create_all(tenant)
            with Session(tenant) as session, session.begin():
                assert Durable(session).spawn(work.call(1), idempotency_key="k").created


def test_a_tenant_can_be_chosen_on_the_sessions_connection(server_url):
    application = plain()
    work = application.handlers()[0]
    with throwaway(server_url) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA tenant"))
        tenant = {"schema_translate_map": {None: "tenant"}}
        application.metadata.create_all(engine.execution_options(**tenant))
        with Session(engine) as session, session.begin():
            session.connection(execution_options=tenant)
            assert Durable(session).spawn(work.call(1), idempotency_key="k").created


def test_schema_is_checked_once_per_database_table_and_schema(server_url):
    application = plain()
    with database(application, server_url) as engine:
        with statements(engine) as sent:
            for _ in range(3):
                with Session(engine) as session:
                    for queue in application.queues:
                        ensure_schema(session, queue)
        assert len(sent) == len(application.queues)


def test_a_dataclass_base_takes_our_columns_for_none_of_its_arguments():
    application = dataclasses_base()
    [queue] = application.queues
    assert [f.name for f in dataclasses.fields(queue) if f.init] == ["tenant", "tags"]
    assert queue(tenant="acme").tenant == "acme"


def test_an_object_that_a_dataclass_base_cant_make_is_refused_by_name():
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Task(DurableTask, Base):
        __queue__ = "dataclass"
        tenant: Mapped[str]

    with pytest.raises(DurableError, match="tenant"):
        handler_of(Task).task(1)
