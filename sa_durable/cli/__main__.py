"""Entry point of `python -m sa_durable.cli`, for when the script `sa-durable` is not on PATH."""

from . import main

main(prog_name="sa-durable")
