"""Values keep their annotated types: as params, results, steps, events and results of children, through every door."""

from __future__ import annotations

import pytest

from tests.databases import url_of
from tests.runtime.conftest import working
from tests.runtime.typed_app import VALUES, apasses, kinds, passes
from tests.runtime.verbs_app import VerbTask
from tests.services.doors import DOORS, open_door


@pytest.mark.parametrize("kind", DOORS)
@pytest.mark.parametrize("handler", [passes, apasses])
def test_annotated_values_come_back_as_what_they_were(verbs, kind, handler):
    """B10"""
    with open_door(kind, url_of(verbs.engine)) as door:
        spawned = door.durable.spawn(handler.call(*VALUES))
        door.session.commit()
        with working(verbs.engine, VerbTask):
            task = verbs.ended(spawned.task_id, timeout=60)
        assert task.state == "completed", task.error
        value = door.durable.result(spawned).value
        door.session.commit()
    assert value == VALUES and kinds(value) == kinds(VALUES)
