"""The command line: `sa-durable worker app.module`. Needs the extra `cli`."""

import sys

try:
    import click as _click  # noqa: F401 - only to say in time what is missing
except ModuleNotFoundError:
    print(
        'the command line needs packages that are not installed: pip install "sa-durable[cli]"',
        file=sys.stderr,
    )
    raise SystemExit(2) from None

from .main import main

__all__ = ["main"]
