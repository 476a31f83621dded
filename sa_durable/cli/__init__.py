"""The command line: `sa-durable worker app.module`. Needs the extra `cli`."""

import sys

try:
    import click as _click  # noqa: F401 - only to report early that it is missing
except ModuleNotFoundError:
    print(
        'the command line needs packages that are not installed. Run: pip install "sa-durable[cli]"',
        file=sys.stderr,
    )
    raise SystemExit(2) from None

from .main import main

__all__ = ["main"]
