"""For children of a run through a pooler: their connections go there too (tests/faults/rerouting.py)."""

import os

if "SA_DURABLE_TEST_POOLER" in os.environ:
    from tests.faults import rerouting

    rerouting.install()
