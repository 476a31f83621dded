"""Durable tasks with idempotency keys, inside your own SQLAlchemy models, session and PostgreSQL."""

__version__ = "0.1.0"
