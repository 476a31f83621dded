"""Factories on factory-boy: declarations for each table. Rows are inserted outside the unit of work."""

from __future__ import annotations

# mypy: allow-untyped-calls
# factory-boy has few annotations. sa_durable.testing gives users the types.
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from sqlalchemy import insert, inspect
from sqlalchemy.orm import RelationshipDirection, Session, scoped_session

from ..errors import InvalidOptions, MissingExtra
from ..ids import uuid7
from ..models import DurableTask
from ..statements import clock
from ..values import Hold, TaskState
from . import states

try:
    from factory.alchemy import SESSION_PERSISTENCE_COMMIT, SQLAlchemyModelFactory
    from factory.declarations import LazyAttribute, LazyFunction, SelfAttribute, Sequence, SubFactory, Trait
    from factory.errors import UnsupportedStrategy
except ImportError as error:
    raise MissingExtra(
        'sa_durable.testing needs factory-boy: pip install "sa-durable[testing]"', name="factory"
    ) from error

Model: TypeAlias = type[DurableTask]
Rows: TypeAlias = type[SQLAlchemyModelFactory]
Make: TypeAlias = Callable[[Model, Session | None], Rows]

_unbound: dict[tuple[Make, Model], Rows] = {}


def bound(make: Make, model: Model, session: Session | scoped_session[Any] | None) -> Any:
    """Return the factory of `make` for a model and a session. It is kept as long as the session exists.

    Raises:
        InvalidOptions: `session` is an AsyncSession, or no session at all.
    """
    if isinstance(session, scoped_session):
        session = session()
    if session is not None and not isinstance(session, Session):
        raise InvalidOptions(
            f"factories need a Session or scoped_session, not {type(session).__name__}. "
            "With an AsyncSession: await session.run_sync(lambda s: task_factory(BillingTask, s)())"
        )
    made = _unbound if session is None else session.info.setdefault(__name__, {})
    if (make, model) not in made:
        made[make, model] = make(model, session)
    return made[make, model]


class InsertedRows(SQLAlchemyModelFactory):
    """Factory whose objects come from the database: an INSERT, then the object that the session loads."""

    class Meta:
        abstract = True

    @classmethod
    def _build(cls, model_class: Any, *_args: Any, **_values: Any) -> Any:
        raise UnsupportedStrategy(
            f"{model_class.__name__}: can't build() a row, because the database sets its times: use create()"
        )

    @classmethod
    def _save(cls, model_class: Any, session: Session, _args: Any, values: dict[str, Any]) -> Any:
        row = cls._inserted(model_class, session, values)
        persistence = cls._meta.sqlalchemy_session_persistence  # type: ignore[attr-defined]  # SQLAlchemy's options
        if persistence == SESSION_PERSISTENCE_COMMIT:
            session.commit()
        return row

    @classmethod
    def _inserted(cls, model_class: Any, session: Session, values: dict[str, Any]) -> Any:
        return _insert(session, model_class, values)


class InsertedTasks(InsertedRows):
    """Factory of tasks whose columns and history agree with their state."""

    class Meta:
        abstract = True

    @classmethod
    def _inserted(cls, model_class: Any, session: Session, values: dict[str, Any]) -> Any:
        state, attempt = TaskState(values.pop("state")), values.pop("attempt")
        history, started = values.pop("history"), values.pop("started")
        hold, key_ttl = values.pop("hold"), values.pop("key_ttl")
        row = {"state": state, "attempt": attempt, **states.task_values(state, attempt, started=started)}
        row |= values
        if values["idempotency_key"] is not None:
            row["key_hold"] = hold
            if key_ttl is not None:
                row.setdefault("key_expires_at", row["created_at"] + key_ttl)
        made = _insert(session, model_class, row)
        runs = states.run_values(made) if history else []
        for ended in runs:
            run(model_class, session)(task=made, **ended)
        return made


def _insert(session: Session, model: type[Any], values: Mapping[str, Any]) -> Any:
    # The INSERT is a Core statement, because a task object refuses a key. The flush inserts the rows it may
    # refer to.
    session.flush()
    mapper = inspect(model)
    columns, rest = {}, {}
    for name, value in values.items():
        if name in mapper.column_attrs:
            columns[mapper.column_attrs[name].columns[0]] = value
        elif name not in mapper.relationships:
            raise TypeError(f"{model.__name__} has no column or relationship {name!r}")
        elif mapper.relationships[name].direction is RelationshipDirection.MANYTOONE:
            for local, remote in mapper.relationships[name].local_remote_pairs:
                columns[local] = None if value is None else _value(value, remote)
        else:
            rest[name] = value
    statement = insert(mapper.local_table).values(columns).returning(*mapper.primary_key)
    key = session.execute(statement, bind_arguments={"mapper": mapper}).one()
    row = session.get_one(model, tuple(key), populate_existing=True)
    for name, value in rest.items():
        setattr(row, name, value)
    session.flush()
    return row


def _value(row: Any, column: Any) -> Any:
    return getattr(row, inspect(type(row)).get_property_by_column(column).key)


def _factory(
    model: type[Any],
    session: Session | None,
    parameters: Mapping[str, Any],
    declarations: Mapping[str, Any],
    base: Rows = InsertedRows,
) -> Rows:
    return type(
        f"{model.__name__}Factory",
        (base,),
        {
            "__module__": __name__,
            "__doc__": f"Factory of {model.__name__} rows.",
            "Meta": type("Meta", (), {"model": model, "sqlalchemy_session": session}),
            "Params": type("Params", (), dict(parameters)),
            **declarations,
        },
    )


def task(model: Model, session: Session | None) -> Rows:
    traits = {state.value: Trait(state=state) for state in TaskState}
    traits["lease_expired"] = Trait(state=TaskState.RUNNING, lease_expires_at=states.ago(seconds=1))
    traits["due"] = Trait(state=TaskState.SLEEPING, available_at=states.ago(seconds=1))
    declarations = {
        "id": LazyFunction(uuid7),
        "run_id": LazyFunction(uuid7),
        "name": "made_up",
        "state": TaskState.PENDING,
        "attempt": 1,
        "started": False,
        "history": True,
        "idempotency_key": None,
        "hold": Hold.ACTIVE,
        "key_ttl": None,
    }
    return _factory(model, session, traits, declarations, InsertedTasks)


def run(model: Model, session: Session | None) -> Rows:
    owner = SubFactory(bound(task, model, session), attempt=2, sleeping=True, history=False)
    parameters = {
        "task": owner,
        "cancelled": Trait(state=TaskState.CANCELLED, error=None),
    }
    declarations = {
        "id": LazyFunction(uuid7),
        "task_id": SelfAttribute("task.id"),
        "attempt": 1,
        "state": TaskState.FAILED,
        "worker": states.WORKER,
        "started_at": states.ago(minutes=1),
        "ended_at": clock.now(),
        "lease_expires_at": LazyAttribute(lambda made: made.ended_at),
        "error": states.ERROR,
    }
    return _factory(model.Run, session, parameters, declarations)


def checkpoint(model: Model, session: Session | None) -> Rows:
    declarations = {
        "task_id": SelfAttribute("task.id"),
        "name": Sequence(lambda n: f"step-{n}"),
        "value": None,
        "attempt": SelfAttribute("task.attempt"),
    }
    owner = SubFactory(bound(task, model, session), running=True)
    return _factory(model.Checkpoint, session, {"task": owner}, declarations)


def event(model: Model, session: Session | None) -> Rows:
    settled = {"emitted_at": states.ago(seconds=1), "settled_at": clock.now()}
    parameters = {"settled": Trait(**settled), "too_late": Trait(dropped=True, **settled)}
    declarations = {"name": Sequence(lambda n: f"event-{n}"), "payload": None}
    return _factory(model.Event, session, parameters, declarations)


def wait(model: Model, session: Session | None) -> Rows:
    owner = SubFactory(bound(task, model, session), sleeping=True, started=True)
    in_an_hour = states.ago(hours=-1)
    parameters = {"task": owner, "timed": Trait(timeout_at=in_an_hour)}
    declarations = {
        "task__available_at": SelfAttribute("..timeout_at"),
        "timeout_at": None,
        "task_id": SelfAttribute("task.id"),
        "event_name": Sequence(lambda n: f"event-{n}"),
        "event_queue": model.__queue__,
        "step": SelfAttribute("event_name"),
    }
    return _factory(model.Wait, session, parameters, declarations)


def queue(model: Model, session: Session | None) -> Rows:
    parameters = {"paused": Trait(paused_at=clock.now())}
    return _factory(model.Queue, session, parameters, {"name": model.__queue__})
