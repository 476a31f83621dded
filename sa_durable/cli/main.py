"""The command group `sa-durable`."""

import click

from .. import __version__
from .cleanup import cleanup
from .worker import worker


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sa-durable")
def main() -> None:
    """Run and maintain durable tasks in your own SQLAlchemy models and PostgreSQL."""


main.add_command(worker)
main.add_command(cleanup)
