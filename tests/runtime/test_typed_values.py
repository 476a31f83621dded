"""Values keep their annotated types: as params, results, steps, events and results of children, through every client."""

from __future__ import annotations

import pytest

from tests.databases import url_of
from tests.runtime.conftest import working
from tests.runtime.context_app import VerbTask
from tests.runtime.typed_app import VALUES, apasses, kinds, passes
from tests.services.clients import CLIENTS, open_client


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("handler", [passes, apasses])
def test_annotated_values_come_back_as_what_they_were(verbs, kind, handler):
    """B10"""
    with open_client(kind, url_of(verbs.engine)) as client:
        spawned = client.durable.spawn(handler.call(*VALUES))
        client.session.commit()
        with working(verbs.engine, VerbTask):
            task = verbs.ended(spawned.task_id, timeout=60)
        assert task.state == "completed", task.error
        value = client.durable.result(spawned).value
        client.session.commit()
    assert value == VALUES and kinds(value) == kinds(VALUES)
