"""Each role of docs/operations/roles.sql can do its part, is refused the rest by PostgreSQL, and has nothing in excess."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, delete, func, insert, select, text, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Session

from sa_durable import Durable, DurableTask, Worker, verify, wait_for
from sa_durable.embedded import postgres
from sa_durable.models.names import Role
from sa_durable.runtime.connections.database import Database
from sa_durable.services import cleanup, events, maintenance, notifications
from sa_durable.testing import run_until_idle
from tests.security.app import Base, Booking, ChildTask, VaultTask, child, everything, leaves, whole
from tests.security.conftest import Roles
from tests.waiting import wait_until

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def empty(roles):
    with roles.admin.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(delete(table))


def spawns(engine: Engine) -> None:
    """What an application does."""
    with Session(engine) as session, session.begin():
        durable = Durable(session)
        first = durable.spawn(everything.call(name="a"), idempotency_key="a")
        assert durable.spawn(everything.call(name="a"), idempotency_key="a").task_id == first.task_id
        durable.spawn(everything.call(name="b"), idempotency_key="a", on_duplicate="update", delay=DAY)
        second = durable.spawn(whole.call(name="b"), idempotency_key="b", key_ttl=DAY, hold="forever")
        durable.spawn(whole.call(name="c"), idempotency_key="b", on_duplicate="replace", hold="forever")
        durable.spawn_many([child.call(), child.call()], priority=3)
        durable.emit_event(VaultTask, "paid", {"order": 7})
        session.add(whole.task(name="d"))
        session.flush()
        assert durable.find_by_key(VaultTask, "a").id == first.task_id
        assert durable.release_key(VaultTask, "b")
        durable.cancel(first)
        durable.retry(second)
        durable.retry(first, as_new=True)
        assert durable.result(first).state == "cancelled" and durable.runs(first)
        assert durable.count_ready(VaultTask) > 0


def waits(engine: Engine) -> None:
    """... and for how its tasks end: this one has ended."""
    with Session(engine) as session, session.begin():
        task = Durable(session).spawn(child.call(), delay=DAY)
    with Session(engine) as session, session.begin():
        Durable(session).cancel(task)
    assert wait_for(engine, task, timeout=DAY).state == "cancelled"


def looks(engine: Engine) -> None:
    """What a dashboard does."""
    with Session(engine) as session:
        for model in (VaultTask, ChildTask):
            for part in (model, model.Run, model.Checkpoint, model.Event, model.Wait, model.Queue):
                session.scalars(select(part)).all()
            Durable(session).count_ready(model)


def works(roles: Roles, engine: Engine) -> None:
    """What workers do: here without threads, and the parts that nothing of this needs by themselves."""
    with Session(roles.admin) as session, session.begin():
        durable = Durable(session)
        task = durable.spawn(everything.call(name="a"))
        failed = durable.spawn(leaves.call())
        durable.spawn(whole.call(name="b"))
        for name in ("a may go", "unheard"):
            durable.emit_event(VaultTask, name, "go")

    def ended() -> bool:
        run_until_idle(engine, VaultTask, ChildTask)  # it sleeps, for milliseconds
        with Session(engine) as session:
            return Durable(session).result(task).state.terminal

    wait_until(ended)
    with Session(engine) as session:
        done, over = Durable(session).result(task), Durable(session).result(failed)
        assert done.value == ["first", "child", "go"], done.error.message
        assert over.error.message == "over"
    database = Database(engine)
    try:
        with database.transaction() as session:
            maintenance.sweep_expired(session, VaultTask, limit=10)
            maintenance.sweep_overdue(session, VaultTask, limit=10)
            cleanup.retentions(session, [VaultTask])
            events.catch_up(session, VaultTask, {}, limit=10)
        with database.transaction() as session:
            notifications.enable(session, [VaultTask, ChildTask], time=DAY, echo="here")
        with database.transaction() as session:
            notifications.enable(session, [VaultTask, ChildTask], time=DAY, echo="again")
            notifications.disable(session, [VaultTask])
        with database.transaction() as session:
            Durable(session).clean_up(VaultTask, older_than=timedelta(0))
            Durable(session).clean_up(ChildTask, older_than=timedelta(0))
    finally:
        database.close()


def test_an_application_needs_the_role_for_spawning_and_no_more(roles):
    spawns(roles.spawn)
    waits(roles.spawn)


def test_a_worker_needs_the_role_for_working_and_no_more(roles):
    works(roles, roles.work)


def test_a_worker_spawns_too(roles):
    spawns(roles.work)
    waits(roles.work)


def test_only_the_owning_role_operates_queues(roles):
    operations = (
        lambda durable: durable.pause(VaultTask),
        lambda durable: durable.resume(VaultTask),
        lambda durable: durable.set_retention(VaultTask, DAY),
        lambda durable: durable.set_retention(VaultTask, None),
    )
    for operate in operations:
        for other in (roles.spawn, roles.work, roles.view):
            with Session(other) as session, pytest.raises(ProgrammingError, match="permission denied"):
                operate(Durable(session))
        with Session(roles.migrate) as session, session.begin():
            assert operate(Durable(session)) is True


def test_reading_needs_the_view_role_only(roles):
    spawns(roles.admin)
    looks(roles.view)


def test_a_real_worker_runs_what_an_application_spawned_each_in_its_role(roles, caplog):
    worker = Worker(
        roles.work,
        [VaultTask, ChildTask],
        poll_interval=timedelta(milliseconds=20),
        sweep_interval=timedelta(milliseconds=50),
    )
    with caplog.at_level(logging.INFO, "sa_durable.worker"):
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            with Session(roles.spawn) as session, session.begin():
                task = Durable(session).spawn(everything.call(name="a"))
                Durable(session).emit_event(VaultTask, "a may go", "go")
            done = wait_for(roles.spawn, task, timeout=timedelta(seconds=60))
            asked = select(VaultTask.Queue.notify_until)
            with roles.view.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                wait_until(lambda: connection.scalars(asked).all())
        finally:
            worker.request_stop()
            thread.join(20)
    assert done.value == ["first", "child", "go"]
    assert "InsufficientPrivilege" not in caplog.text and "denied" not in caplog.text


def denied(engine: Engine, statement) -> bool:
    with engine.connect() as connection:
        try:
            connection.execute(statement)
        except ProgrammingError as error:
            return error.orig.sqlstate == "42501"
    return False


Q, ANY = VaultTask.Queue, uuid4()
DENIED = {
    "a spawner removes a task": ("spawn", delete(VaultTask)),
    "a spawner forges a checkpoint": (
        "spawn",
        insert(VaultTask.Checkpoint).values(task_id=ANY, name="x", attempt=1),
    ),
    "a spawner decides an event": ("spawn", update(VaultTask.Event).values(dropped=True)),
    "a spawner reads a checkpoint": ("spawn", select(VaultTask.Checkpoint)),
    "a spawner reads an event": ("spawn", select(VaultTask.Event)),
    "a spawner starts a task": ("spawn", update(VaultTask).values(first_started_at=None)),
    "a spawner forges a result": ("spawn", update(VaultTask).values(result=1)),
    "a spawner makes a task another": ("spawn", update(VaultTask).values(name="x")),
    "a spawner pauses a queue": ("spawn", insert(Q).values(name="vault")),
    "a spawner asks for notifications": ("spawn", update(Q).values(notify_until=None)),
    "a spawner rewrites history": ("spawn", delete(VaultTask.Run)),
    "a worker pauses a queue": ("work", update(Q).values(paused_at=None)),
    "a worker sets a retention": ("work", insert(Q).values(name="vault", retention=DAY)),
    "a worker removes a queue's settings": ("work", delete(Q)),
    "a worker rewrites history": ("work", update(VaultTask.Run).values(error=None)),
    "a worker rewrites a checkpoint": ("work", update(VaultTask.Checkpoint).values(attempt=2)),
    "a worker changes the schema": ("work", text("ALTER TABLE durable_vault_tasks ADD COLUMN x int")),
    "a worker reads tables that are not its own": ("spawn", select(Booking)),
    "an onlooker spawns": ("view", insert(VaultTask).values(name="x", params={})),
    "an onlooker cancels": ("view", update(VaultTask).values(state="cancelled")),
    "an onlooker emits": ("view", insert(VaultTask.Event).values(name="x", payload=None)),
    "an onlooker makes a table": ("view", text("CREATE TABLE x (y int)")),
    "a spawner drops a table": ("spawn", text("DROP TABLE durable_vault_tasks")),
    "a spawner locks out everybody": ("spawn", text("LOCK durable_queues IN ACCESS EXCLUSIVE MODE")),
}


@pytest.mark.parametrize("what", DENIED)
def test_postgresql_refuses_each_role_what_is_not_its_part(roles, what):
    role, statement = DENIED[what]
    assert denied(roles.engines[role], statement), what


def test_a_worker_as_a_spawner_gets_nowhere_and_the_tasks_are_unharmed(roles):
    with Session(roles.spawn) as session, session.begin():
        task = Durable(session).spawn(everything.call(name="a"))
    with pytest.raises(ProgrammingError, match="permission denied"):
        run_until_idle(roles.spawn, VaultTask)
    with pytest.raises(ProgrammingError, match="permission denied"):
        spawns(roles.view)
    with Session(roles.view) as session:
        assert Durable(session).result(task).attempt == 1


GRANTS = text(
    "SELECT acl.privilege_type, '' AS of_column, c.relname FROM pg_class c, aclexplode(c.relacl) acl "
    "WHERE acl.grantee = to_regrole(:role) UNION ALL "
    "SELECT acl.privilege_type, a.attname, c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid, "
    "aclexplode(a.attacl) acl WHERE acl.grantee = to_regrole(:role) ORDER BY 1, 2, 3"
)


def grants(engine: Engine, role: str) -> list[tuple[str, str, str]]:
    """(privilege, column or "", table) of a role, in this database."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(GRANTS, {"role": role})]


OF_ONE_QUEUE = {"durable_queues", *(f"durable_vault_{part}" for part in Role)}


@pytest.mark.parametrize("role", ["spawn", "work", "view"])
def test_no_privilege_is_in_excess(roles, role):
    """Without any one of them the role can't do its part."""
    scenario = {
        "spawn": lambda: (spawns(roles.spawn), waits(roles.spawn)),
        "work": lambda: works(roles, roles.work),
        "view": lambda: looks(roles.view),
    }[role]
    scenario()
    needless = []
    wanted = [
        (privilege, column, table)
        for privilege, column, table in grants(roles.admin, f"durable_{role}")
        if table in OF_ONE_QUEUE and not (privilege == "UPDATE" and column and table.endswith("tasks"))
    ]
    assert len(wanted) >= 6
    for privilege, column, table in wanted:
        what = f"{privilege} {f'({column})' if column else ''} ON {table}"
        with roles.admin.begin() as connection:
            connection.execute(text(f"REVOKE {what} FROM durable_{role}"))
        try:
            scenario()
            needless.append(what)
        except (ProgrammingError, AssertionError) as error:
            assert "permission denied" in str(error), (
                what
            )  # the task's own error says so, if it is the handler's
        finally:
            with roles.admin.begin() as connection:
                connection.execute(text(f"GRANT {what} TO durable_{role}"))
                for each in reversed(Base.metadata.sorted_tables):
                    connection.execute(delete(each))
    assert needless == []


def test_the_script_can_be_run_again_and_takes_back_what_was_in_excess(roles):
    before = grants(roles.admin, "durable_work")
    with roles.admin.begin() as connection:
        connection.execute(text("GRANT ALL ON durable_vault_runs TO durable_view"))
    roles.apply(roles.migrate)
    assert grants(roles.admin, "durable_work") == before
    assert [g for g in grants(roles.admin, "durable_view") if g[2] == "durable_vault_runs"] == [
        ("SELECT", "", "durable_vault_runs")
    ]


def test_migration_role_makes_tables_that_the_script_grants(roles):
    class Other(DeclarativeBase):
        pass

    class NewTask(DurableTask, Other):
        __queue__ = "new"

    with roles.migrate.begin() as connection:
        connection.execute(text("DROP INDEX ix_durable_vault_tasks_due"))
        (missing,) = verify(connection, Base.metadata)
        indexes = Base.metadata.tables["durable_vault_tasks"].indexes
        next(index for index in indexes if index.name == missing.name).create(connection)
        assert verify(connection, Base.metadata) == []
        Other.metadata.create_all(connection)
        connection.execute(insert(Q).values(name="vault", paused_at=func.now(), retention=DAY))
    assert denied(roles.spawn, select(NewTask.id))
    roles.apply(roles.migrate)
    with Session(roles.spawn) as session, session.begin():
        Durable(session).spawn(NewTask, "new", {})
    assert run_until_idle(roles.work, NewTask).remaining[0].name == "new"
    assert denied(roles.migrate, text("CREATE ROLE another"))
    assert denied(roles.migrate, select(Booking))


def test_table_owner_with_createrole_runs_the_script_first():
    with postgres(environ={}) as server:
        admin = create_engine(server.url)
        owner = create_engine(admin.url.set(username="owner"))
        with admin.begin() as connection:
            connection.execute(text("CREATE ROLE owner LOGIN CREATEROLE"))
            connection.execute(text("GRANT ALL ON DATABASE postgres TO owner WITH GRANT OPTION"))
            connection.execute(text("GRANT ALL ON SCHEMA public TO owner WITH GRANT OPTION"))
        Base.metadata.create_all(owner)
        Roles(admin).apply(owner)
        Roles(admin).apply(owner)
        assert len(grants(admin, "durable_view")) == 11
        spawns(owner)
        for engine in (admin, owner):
            engine.dispose()
